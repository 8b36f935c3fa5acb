"""Errors that every new group of workers meets again end the run; those that pass do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from d2det_platform.store import RunStore
from d2det_platform.train import crashes
from d2det_platform.train.crashes import TRIES, Crashes
from d2det_platform.train.host import PlainHost
from d2det_platform.train.loop import Trainer, train
from d2det_platform.train.outcome import Outcome
from tests.platform.train.group import ONE, Group, in_processes, losses_of, scene_options

OUT_OF_MEMORY = torch.OutOfMemoryError("Tried to allocate 2.00 GiB.\nSee the manual")
GONE = RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:12722")


def ended(store: RunStore, *notes: tuple[int, Exception]) -> Outcome | None:
    """What a new group finds after groups that ended with `notes`, one each."""
    for step, error in notes:
        Crashes.of_group(store, ONE).note(step, error)
    return Crashes.of_group(store, ONE).repeated()


def test_the_same_error_at_the_same_step_ends_the_run_at_last(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    assert ended(store) is None
    assert ended(store, *[(7, OUT_OF_MEMORY)] * (TRIES - 1)) is None
    end = ended(store, (7, OUT_OF_MEMORY))
    assert end is not None
    assert (end.kind, end.step) == ("failed", 7)
    assert "after step 7, with OutOfMemoryError: Tried to allocate 2.00 GiB. - lower" in end.message
    assert "--cluster.images-per-pass" in end.message
    crashes.clear(store)
    assert ended(store) is None


def test_other_steps_other_errors_and_ranks_of_one_group_do_not_add_up(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    one = Crashes.of_group(store, ONE)
    for _ in range(TRIES):  # all ranks of a group
        one.note(3, TypeError("wrong"))
    notes = [(step, TypeError("wrong")) for step in range(4, 12)]
    assert ended(store, *notes, (3, KeyError("x")), (3, ValueError("")), (4, KeyError("x"))) is None


@pytest.mark.parametrize("error", [GONE, OSError("storage is away"), ConnectionResetError()])
def test_what_comes_from_outside_does_not_count(tmp_path: Path, error: Exception) -> None:
    assert ended(RunStore(str(tmp_path)), *[(3, error)] * 9) is None


def test_a_training_that_breaks_at_one_step_is_given_up_and_mended_goes_on(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = scene_options(scenes, tmp_path, train__epochs=2, checkpoint_every_steps=1)
    update = Trainer._update

    def broken(trainer: Trainer, *args: Any) -> None:
        if trainer.state.step == 4:
            raise TypeError("expected a tensor")
        update(trainer, *args)

    monkeypatch.setattr(Trainer, "_update", broken)
    for _ in range(TRIES):
        with pytest.raises(TypeError):
            train(options, ONE, PlainHost())
    end = train(options, ONE, PlainHost())
    assert (end.kind, end.step) == ("failed", 4)
    assert "TypeError: expected a tensor" in end.message
    monkeypatch.undo()
    crashes.clear(RunStore(options.run_url))
    assert train(options, ONE, PlainHost()) == Outcome("finished", 6)
    assert len(losses_of(options)) == 6


def of_two(rank: int, folder: Path) -> str | None:
    """What a rank of two learns, with notes in the folder that both would read."""
    with Group(rank, 2, folder / "group") as ranks:
        assert ranks is not None
        end = Crashes.of_group(RunStore(str(folder)), ranks).repeated()
        return None if end is None else end.message


def test_every_rank_learns_it(tmp_path: Path) -> None:
    ended(RunStore(str(tmp_path)), *[(2, MemoryError())] * TRIES)
    first, second = in_processes(2, of_two, tmp_path)
    assert first == second
    assert "after step 2, with MemoryError - lower" in first
