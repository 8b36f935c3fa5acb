"""One rank's training, without Ray: what goes wrong, what is asked of it, and what it leaves."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_tensors

from d2det.checkpoints.weights import load_detector
from d2det_platform.store import RunStore
from d2det_platform.train import checkpoints, stop
from d2det_platform.train.checkpoints import Checkpoint
from d2det_platform.train.host import PlainHost
from d2det_platform.train.loop import Trainer, train
from d2det_platform.train.options import TrainOptions
from d2det_platform.train.outcome import Outcome
from d2det_platform.train.requests import Request
from d2det_platform.train.state import TENSORS
from tests.platform.train.group import (
    ONE,
    alone,
    losses_of,
    rows_of,
    scene_options,
)


def newest(options: TrainOptions) -> Checkpoint:
    found = checkpoints.load_latest(RunStore(options.run_url))
    assert found is not None
    return found


def weights_of(options: TrainOptions) -> bytes:
    """Model, optimiser and averages of the newest checkpoint."""
    return newest(options).files[TENSORS]


def poison(trainer: Trainer, steps: set[int]) -> None:
    """Makes the gradient NaN in the steps that follow `steps` done ones."""
    compute = trainer.gradient.compute

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        losses = compute(*args, **kwargs)
        if trainer.state.step in steps:
            next(p for p in trainer.model.parameters() if p.grad is not None).grad.fill_(torch.nan)
        return losses

    trainer.gradient.compute = poisoned


def test_20_steps_that_are_not_finite_leave_20_sound_checkpoints(
    scenes: Path, tmp_path: Path
) -> None:
    options = scene_options(
        scenes, tmp_path, train__epochs=9, train__ema_decay=0.9, checkpoint_every_steps=1,
        checkpoints_kept=30,
    )  # fmt: skip
    bad = set(random.Random(20).sample(range(27), 20))
    trainer = alone(options.model_copy(update={"max_skipped_steps": 20}))
    poison(trainer, bad)
    assert trainer.run() == Outcome("finished", 27)
    trainer.close()
    events = [row for row in rows_of(options) if "skipped" in row.get("event", "")]
    assert [row["step"] - 1 for row in events] == sorted(bad)
    store = RunStore(options.run_url)
    before = None
    for step in range(1, 28):
        files = checkpoints.load(store, step).files
        tensors = load_tensors(files[TENSORS])
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
        assert (before == files[TENSORS]) == (step - 1 in bad and step > 1), step
        before = files[TENSORS]


def test_a_training_that_diverges_ends_with_what_to_do(scenes: Path, tmp_path: Path) -> None:
    options = scene_options(
        scenes, tmp_path, train__epochs=9, max_skipped_steps=3, checkpoint_every_steps=1
    )
    trainer = alone(options)
    poison(trainer, set(range(5, 30)))
    with pytest.raises(Exception, match=r"4 steps in a row .* lower --train\.lr"):
        trainer.run()
    trainer.close()
    assert newest(options).step == 8


class Leaves(PlainHost):
    """A machine that will be taken away after some looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def is_leaving(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def test_a_notice_costs_no_step(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d2det_platform.train.loop.LOOK_EVERY_S", 0.0)
    whole = scene_options(scenes, tmp_path, name="whole", train__epochs=3)
    assert train(whole, ONE, PlainHost()).kind == "finished"
    parts = whole.model_copy(update={"name": "parts"})
    outcome = train(parts, ONE, Leaves(3))
    assert (outcome.kind, newest(parts).step) == ("leaving", outcome.step)
    assert 3 < outcome.step < 7
    assert train(parts, ONE, Leaves(10**6)).kind == "finished"
    assert losses_of(parts) == losses_of(whole)
    assert weights_of(parts) == weights_of(whole)


def test_a_stop_at_the_last_step_of_an_epoch_does_not_lose_its_evaluation(
    scenes: Path, tmp_path: Path
) -> None:
    options = scene_options(scenes, tmp_path, val=True, train__epochs=2)
    trainer = alone(options)
    record = trainer._record

    def record_and_ask(*args: Any, **kwargs: Any) -> None:
        record(*args, **kwargs)
        if trainer.state.step == 2:
            trainer.requests.make(Request.STOP)

    trainer._record = record_and_ask
    assert trainer.run() == Outcome("stopped", 3)
    trainer.close()
    assert train(options, ONE, PlainHost()).kind == "finished"
    assert [row["step"] for row in rows_of(options) if "metrics" in row] == [3, 6]


def test_a_stop_file_ends_the_run_with_a_checkpoint_and_it_goes_on_later(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scene_options(scenes, tmp_path, name="whole", train__epochs=2)
    train(whole, ONE, PlainHost())
    parts = whole.model_copy(update={"name": "parts"})
    monkeypatch.setattr(stop, "POLL_S", 0.01)
    trainer, store = alone(parts), RunStore(parts.run_url)
    store.write(stop.FILE, b"please")
    while not trainer.stop.is_requested:
        pass
    outcome = trainer.run()
    trainer.close()
    assert (outcome.kind, newest(parts).step) == ("stopped", outcome.step)
    assert outcome.step < 6
    stop.clear(store)
    assert train(parts, ONE, PlainHost()).kind == "finished"
    assert weights_of(parts) == weights_of(whole)


@pytest.fixture
def _plain_interrupts() -> Iterator[None]:
    """Ctrl-C as in a terminal; a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_plain_interrupts")
def test_signals_ask_to_stop_once_and_are_themselves_again_the_second_time(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    with stop.signals_stop(store):
        os.kill(os.getpid(), signal.SIGTERM)
        assert store.read(stop.FILE) == b"SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_an_unreadable_picture_ends_the_run_with_its_name(scenes: Path, tmp_path: Path) -> None:
    options = scene_options(scenes, tmp_path, train__epochs=2)
    trainer = alone(options)
    broken = trainer.dataset.path(4)
    trainer.dataset.images = str(tmp_path / "copy")
    (tmp_path / "copy").mkdir()
    for file in (scenes / "train").iterdir():
        content = file.read_bytes()
        name = tmp_path / "copy" / file.name
        name.write_bytes(content[:50] if file.name == Path(broken).name else content)
    outcome = trainer.run()
    trainer.close()
    assert outcome.kind == "failed"
    assert Path(broken).name in outcome.message


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow beyond 100 kB, as on a disk that is full."""
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)


def test_a_full_disk_ends_the_run_clearly_tears_nothing_and_it_goes_on_with_room(
    scenes: Path, tmp_path: Path
) -> None:
    whole = scene_options(scenes, tmp_path, name="whole", train__epochs=3)
    train(whole, ONE, PlainHost())
    parts = whole.model_copy(update={"name": "parts"})
    one_epoch = parts.train.model_copy(update={"epochs": 1})
    train(parts.model_copy(update={"train": one_epoch}), ONE, PlainHost())
    with full_disk():
        outcome = train(parts, ONE, PlainHost())
    assert outcome.kind == "failed"
    assert "cannot save" in outcome.message
    assert "too large" in outcome.message
    assert newest(parts).step == 3
    assert not list(Path(parts.run_url).rglob("*.tmp"))
    assert train(parts, ONE, PlainHost()).kind == "finished"
    assert weights_of(parts) == weights_of(whole)
    assert losses_of(parts) == losses_of(whole)


def test_frozen_modules_keep_their_weights(scenes: Path, tmp_path: Path) -> None:
    options = scene_options(scenes, tmp_path, train__epochs=1, **{"train__frozen": "backbone"})
    trainer = alone(options)
    before = {name: t.clone() for name, t in trainer.model.state_dict().items()}
    trainer.run()
    trainer.close()
    changed = {
        name for name, t in trainer.model.state_dict().items() if not torch.equal(t, before[name])
    }
    assert changed
    assert not [name for name in changed if name.startswith("backbone.")]
    assert any(name.startswith("rpn.") for name in changed)


def test_a_frozen_pattern_that_names_nothing_is_refused_with_the_nearest(
    scenes: Path, tmp_path: Path
) -> None:
    options = scene_options(scenes, tmp_path, **{"train__frozen": "backbne"})
    outcome = train(options, ONE, PlainHost())
    assert outcome.kind == "failed"
    assert "did you mean 'backbone'" in outcome.message


def test_float16_learns_with_a_scaled_loss(scenes: Path, tmp_path: Path) -> None:
    """On a CPU, which the options refuse because it gains nothing there."""
    whole = scene_options(scenes, tmp_path, name="whole", train__epochs=1)
    train(whole, ONE, PlainHost())
    precision = whole.train.model_copy(update={"precision": "fp16"})
    trainer = alone(whole.model_copy(update={"name": "half", "train": precision}))
    trainer.state.progress["loss_scale"] = 64.0
    assert trainer.run() == Outcome("finished", 3)
    trainer.close()
    exact, half = rows_of(whole)[0], rows_of(trainer.options)[0]
    assert half["loss"] == pytest.approx(exact["loss"], rel=0.05)
    assert half["grad_norm"] == pytest.approx(exact["grad_norm"], rel=0.2), "the scale is out"
    assert half["loss"] != exact["loss"]


def test_what_is_left_names_config_devices_and_data(scenes: Path, tmp_path: Path) -> None:
    from d2det_platform.train import card

    options = scene_options(scenes, tmp_path, val=True, train__epochs=1)
    card.open_card(options)
    train(options, ONE, PlainHost())
    run = json.loads((Path(options.run_url) / card.FILE).read_text())
    assert run["config"]["train"]["epochs"] == 1
    assert run["groups"][0]["devices"][0]["pid"] == os.getpid()
    assert run["groups"][0]["images_per_rank"] == [3]
    assert len(run["annotations_sha256"]["training"]) == 64
    load_detector(Path(options.run_url) / "last.safetensors")
    other = options.model_copy(
        update={"data": options.data.model_copy(update={"train_annotations": str(tmp_path / "o")})}
    )
    content = Path(options.data.train_annotations).read_text()
    (tmp_path / "o").write_text(content + " ")
    with pytest.raises(ValueError, match="training annotations are not those"):
        card.open_card(other)
