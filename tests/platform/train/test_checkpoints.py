import logging
import random
from pathlib import Path

import pytest

from d2det_platform.store import RunStore
from d2det_platform.train import checkpoints
from d2det_platform.train.checkpoints import Checkpoint, DamagedCheckpointError


def content(step: int) -> Checkpoint:
    noise = random.Random(step)
    return Checkpoint(
        step, {"model.safetensors": noise.randbytes(5000), "state.json": noise.randbytes(100)}
    )


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(str(tmp_path / "run"))


def folder_of(store: RunStore, step: int) -> Path:
    return Path(store.path(f"checkpoints/step-{step:09d}"))


def test_a_checkpoint_comes_back_as_saved(store: RunStore) -> None:
    checkpoints.save(store, content(7), keep=2)
    assert checkpoints.load_latest(store) == content(7)


def test_an_empty_store_has_none(store: RunStore) -> None:
    assert checkpoints.load_latest(store) is None


def test_the_newest_are_kept(store: RunStore) -> None:
    for step in (10, 9, 100, 30):
        checkpoints.save(store, content(step), keep=2)
    assert store.names("checkpoints") == ["step-000000030", "step-000000100"]


def test_a_rewritten_step_replaces_the_old_one(store: RunStore) -> None:
    checkpoints.save(store, Checkpoint(5, {"a": b"old", "b": b"x"}), keep=2)
    checkpoints.save(store, Checkpoint(5, {"a": b"new"}), keep=2)
    assert checkpoints.load(store, 5).files == {"a": b"new"}


def damage(folder: Path, other: Path, choose: random.Random) -> str:
    """One random damage to a checkpoint folder: what was done."""
    target = folder / choose.choice(["model.safetensors", "state.json", "manifest.json"])
    data = bytearray(target.read_bytes())
    position = choose.randrange(len(data))
    kind = choose.choice(["truncate", "flip", "hole", "zero tail", "missing", "swap", "append"])
    if kind == "missing":
        target.unlink()
        return kind
    if kind == "truncate":
        del data[position:]
    elif kind == "flip":
        data[position] ^= 1 << choose.randrange(8)
    elif kind == "hole":
        data[position : position + 64] = bytes(len(data[position : position + 64]))
    elif kind == "zero tail":
        data[position:] = bytes(len(data) - position)
    elif kind == "swap":
        data = bytearray((other / target.name).read_bytes())
    else:
        data += b" "
    target.write_bytes(bytes(data))
    return f"{kind} {target.name} at {position}"


def test_five_hundred_damages_are_detected_and_the_previous_checkpoint_is_used(
    store: RunStore, caplog: pytest.LogCaptureFixture
) -> None:
    choose = random.Random(20200614)
    caplog.set_level(logging.CRITICAL)
    checkpoints.save(store, content(1), keep=3)
    for trial in range(500):
        checkpoints.save(store, content(2), keep=3)
        before = {p.name: p.read_bytes() for p in folder_of(store, 2).iterdir()}
        while True:  # a hole over zeros changes nothing: that is no damage
            what = damage(folder_of(store, 2), folder_of(store, 1), choose)
            if {p.name: p.read_bytes() for p in folder_of(store, 2).iterdir()} != before:
                break
        with pytest.raises(DamagedCheckpointError):
            checkpoints.load(store, 2)
        assert checkpoints.load_latest(store) == content(1), (trial, what)


def test_a_writer_that_dies_leaves_the_previous_checkpoint(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save(store, content(1), keep=1)
    real, calls = RunStore.write, []

    def failing(self: RunStore, name: str, data: bytes) -> None:
        calls.append(name)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(self, name, data)

    monkeypatch.setattr(RunStore, "write", failing)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(store, content(2), keep=1)
    assert checkpoints.load_latest(store) == content(1)
    assert not list(Path(store.root).rglob("*.tmp"))
