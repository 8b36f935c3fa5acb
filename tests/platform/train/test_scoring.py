"""Evaluations beside the training: nothing waits, nothing is lost, nothing is scored twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from d2det.checkpoints.weights import read_weights
from d2det_platform.store import RunStore
from d2det_platform.train import apart, scoring
from d2det_platform.train.evaluation import Evaluation
from d2det_platform.train.host import PlainHost
from d2det_platform.train.loop import train
from d2det_platform.train.options import TrainOptions
from d2det_platform.train.scoring import Scoring
from tests.platform.train.group import ONE, rows_of, scene_options
from tests.threads import threads


class Elsewhere(PlainHost):
    """Other resources, on which an evaluation ends when the test says so."""

    def __init__(self, *, is_lazy: bool = False) -> None:
        self.started: list[int] = []
        self.is_lazy = is_lazy
        self.is_stuck = False

    def has_room(self, options: TrainOptions) -> bool:
        return True

    def score(self, options: TrainOptions, step: int) -> Any:
        self.started.append(step)
        return step

    def is_over(self, handle: Any, *, wait: bool) -> bool:
        return (wait and not self.is_stuck) or not self.is_lazy


@pytest.fixture
def options(scenes: Path, tmp_path: Path) -> Iterator[TrainOptions]:
    # Scoring elsewhere takes the threads the options name, and here it is this very process.
    with threads(1):
        yield scene_options(scenes, tmp_path, val=True, train__epochs=3)


def leave_result(options: TrainOptions, step: int, value: float) -> None:
    store = RunStore(options.run_url)
    evaluation = Evaluation({"bbox/AP": value}, [{"step": step}])
    store.write(apart.result_name(step), json.dumps(evaluation.as_dict()).encode())


class Book:
    """A scoring with what it published."""

    def __init__(self, options: TrainOptions, host: Any, numbers: dict[str, Any]) -> None:
        self.published: list[tuple[int, float]] = []
        self.scoring = Scoring(
            options, ONE, host, numbers, lambda s, m: self.published.append((s, m["bbox/AP"]))
        )


def test_a_run_is_scored_elsewhere_while_it_trains_and_here_at_its_end(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Elsewhere()
    host.score = lambda options, step: (  # really elsewhere it would be a task
        host.started.append(step) or PlainHost().score(options, step)
    )
    assert train(options, ONE, host).kind == "finished"
    assert host.started == [3, 6]
    scored = {row["step"]: row["metrics"] for row in rows_of(options) if "metrics" in row}
    assert sorted(scored) == [3, 6, 9]
    here = options.model_copy(update={"name": "here", "evaluate_on": "workers"})
    assert train(here, ONE, Elsewhere()).kind == "finished"
    also = {row["step"]: row["metrics"] for row in rows_of(here) if "metrics" in row}
    for step in (3, 6, 9):
        for name in ("bbox/AP", "segm/AP", "bbox/AR100"):
            assert scored[step][name] == also[step][name]
    assert not list((Path(options.run_url) / apart.FOLDER).glob("*.safetensors"))
    best = [read_weights(Path(run.run_url) / scoring.BEST) for run in (options, here)]
    assert best[0].digest == best[1].digest


def test_training_does_not_wait_and_the_best_is_kept(options: TrainOptions) -> None:
    host, numbers = Elsewhere(is_lazy=True), {}
    book = Book(options, host, numbers)
    book.scoring.after_epoch(1, 3, lambda: b"three")
    book.scoring.after_epoch(2, 6, lambda: b"six")
    book.scoring.collect()
    assert (host.started, book.published) == ([3, 6], [])
    leave_result(options, 3, 0.5)
    leave_result(options, 6, 0.4)
    book.scoring.collect(wait=True)
    assert book.published == [(3, 0.5), (6, 0.4)]
    assert RunStore(options.run_url).read(scoring.BEST) == b"three"
    assert numbers == {"best": 0.5, "evaluations_since_best": 1, "evaluations_pending": []}


def test_a_restart_takes_over_what_was_under_way(options: TrainOptions) -> None:
    numbers: dict[str, Any] = {}
    first = Book(options, Elsewhere(is_lazy=True), numbers)
    first.scoring.after_epoch(1, 3, lambda: b"three")
    first.scoring.after_epoch(2, 6, lambda: b"six")
    leave_result(options, 3, 0.5)  # ended while nobody was there; that of step 6 was lost
    host = Elsewhere()
    again = Book(options, host, numbers)
    assert host.started == [6]
    leave_result(options, 6, 0.7)
    again.scoring.collect()
    assert again.published == [(3, 0.5), (6, 0.7)]


def test_an_evaluation_that_finds_no_place_is_made_here_in_the_end(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Elsewhere(is_lazy=True)
    host.is_stuck = True
    book = Book(options, host, {})
    book.scoring.after_epoch(1, 3, lambda: b"three")
    monkeypatch.setattr(apart, "score_apart", lambda _, step: leave_result(options, step, 0.5))
    book.scoring.collect()
    assert book.published == []
    book.scoring.collect(wait=True)
    assert book.published == [(3, 0.5)]


def test_an_evaluation_that_fails_does_not_end_the_run(
    options: TrainOptions, caplog: pytest.LogCaptureFixture
) -> None:
    book = Book(options, Elsewhere(), {})
    book.scoring.after_epoch(1, 3, lambda: b"three")
    book.scoring.collect()
    assert book.published == []
    assert "the evaluation after step 3 failed" in caplog.text


def test_evaluations_slower_than_training_do_not_pile_up(
    options: TrainOptions, caplog: pytest.LogCaptureFixture
) -> None:
    many = options.model_copy(update={"train": options.train.model_copy(update={"epochs": 9})})
    host = Elsewhere(is_lazy=True)
    book = Book(many, host, {})
    for epoch in range(1, 5):
        book.scoring.after_epoch(epoch, 3 * epoch, lambda: b"weights")
    assert host.started == [3, 6]
    assert "raise --evaluate-every-epochs" in caplog.text


def test_a_metric_that_stops_growing_ends_the_run_early(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.1, 0.3, 0.3, 0.2, 0.9, 0.9])
    monkeypatch.setattr(scoring, "evaluate", lambda *_: Evaluation({"bbox/AP": next(values)}, []))
    patient = options.model_copy(
        update={"early_stop": 2, "train": options.train.model_copy(update={"epochs": 6})}
    )
    outcome = train(patient, ONE, PlainHost())
    assert (outcome.kind, outcome.step) == ("finished", 12)
    assert train(patient, ONE, PlainHost()).step == 12, "resubmitting does not train on"
    assert next(values) == 0.9
