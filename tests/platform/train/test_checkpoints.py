import logging
import random
from dataclasses import replace
from pathlib import Path

import pytest

from d2det_platform import store as store_module
from d2det_platform.store import RunStore
from d2det_platform.train import checkpoints
from d2det_platform.train.checkpoints import Checkpoint, DamagedCheckpointError
from d2det_platform.train.setup import common_checkpoint
from tests.platform.train.group import Group, in_processes
from tests.platform.train.object_store import Flaky


def content(step: int) -> Checkpoint:
    noise = random.Random(step)
    return Checkpoint(
        step, {"model.safetensors": noise.randbytes(5000), "state.json": noise.randbytes(100)}
    )


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(str(tmp_path / "run"))


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


def damage(files: dict[str, bytes], other: dict[str, bytes], choose: random.Random) -> str:
    """One random damage to the files of a checkpoint, given those of another: what was done."""
    name = choose.choice(["model.safetensors", "state.json", "manifest.json"])
    data = bytearray(files[name])
    position = choose.randrange(len(data))
    kind = choose.choice(
        ["truncate", "flip", "hole", "zero tail", "missing", "swap", "exchange", "append", "empty"]
    )
    if kind == "missing":
        del files[name]
        return f"{kind} {name}"
    if kind == "exchange":  # two files of the checkpoint change places
        second = choose.choice([n for n in files if n != name])
        files[name], files[second] = files[second], files[name]
        return f"{kind} {name} {second}"
    if kind == "truncate":
        del data[position:]
    elif kind == "flip":
        data[position] ^= 1 << choose.randrange(8)
    elif kind == "hole":
        data[position : position + 64] = bytes(len(data[position : position + 64]))
    elif kind == "zero tail":
        data[position:] = bytes(len(data) - position)
    elif kind == "swap":
        data = bytearray(other[name])
    elif kind == "empty":
        data = bytearray()
    else:
        data += b" "
    files[name] = bytes(data)
    return f"{kind} {name} at {position}"


def detects_damages(store: RunStore, trials: int) -> None:
    """Damages the newest checkpoint `trials` times; each must be seen, and the older one used."""
    choose = random.Random(20200614)
    checkpoints.save(store, content(1), keep=3)
    checkpoints.save(store, content(2), keep=3)
    folders = [f"checkpoints/step-{step:09d}" for step in (1, 2)]
    other, sound = ({n: store.read(f"{f}/{n}") for n in store.names(f)} for f in folders)
    assert len(sound) == 3
    for trial in range(trials):
        files = dict(sound)
        while files == sound:  # a hole over zeros changes nothing: that is no damage
            what = damage(files, other, choose)
        for name in sound:
            if name not in files:
                store.remove(f"{folders[1]}/{name}")
            elif files[name] != sound[name]:
                store.write(f"{folders[1]}/{name}", files[name])
        with pytest.raises(DamagedCheckpointError):
            checkpoints.load(store, 2)
        assert checkpoints.load_latest(store) == content(1), (trial, what)
        for name in sound:
            if files.get(name) != sound[name]:
                store.write(f"{folders[1]}/{name}", sound[name])
    assert checkpoints.load_latest(store) == content(2)


def test_five_hundred_damages_are_detected_and_the_previous_checkpoint_is_used(
    store: RunStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    detects_damages(store, 500)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("trials", [8, pytest.param(500, marks=pytest.mark.slow)])
def test_damages_are_detected_in_an_object_store_of_which_a_tenth_of_the_calls_fail(
    s3: Flaky, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, trials: int
) -> None:
    caplog.set_level(logging.CRITICAL)
    # As many attempts as ever, but thousands of calls fail: the pauses alone would take an hour.
    monkeypatch.setattr(store_module, "BACKOFF", replace(store_module.BACKOFF, first_s=0.01))
    detects_damages(RunStore(f"s3://lake/{trials}"), trials)
    assert s3.failures > trials / 4


def common_steps(rank: int, folder: Path, place: Path) -> list[int]:
    """The step that two ranks agree on, each with a folder of its own, as it sees the store."""
    with Group(rank, 2, place) as ranks:
        assert ranks is not None
        found = []
        for each in sorted(folder.iterdir()):
            newest = common_checkpoint(RunStore(str(each / str(rank))), ranks)
            found.append(newest.step if newest else 0)
    return found


def test_ranks_resume_from_what_all_of_them_find_sound_and_the_same(tmp_path: Path) -> None:
    """A request of a process that has died may reach the store between the reading of two ranks."""
    folder = tmp_path / "runs"
    stores = {
        case: [RunStore(str(folder / case / str(rank))) for rank in (0, 1)]
        for case in ("0 alike", "1 gone", "2 rewritten", "3 gone twice")
    }
    for pair in stores.values():
        for store in pair:
            for step in (1, 2):
                checkpoints.save(store, content(step), keep=3)
    stores["1 gone"][1].remove("checkpoints/step-000000002/manifest.json")
    checkpoints.save(stores["2 rewritten"][1], Checkpoint(2, content(9).files), keep=3)
    stores["3 gone twice"][1].remove("checkpoints/step-000000002/manifest.json")
    stores["3 gone twice"][1].remove("checkpoints/step-000000001/state.json")
    found = in_processes(2, common_steps, folder, tmp_path / "group")
    assert found == [[2, 1, 1, 0]] * 2


def test_an_unfinished_checkpoint_is_not_counted_among_the_kept(store: RunStore) -> None:
    for step in (1, 2):
        checkpoints.save(store, content(step), keep=2)
    store.write("checkpoints/step-000000003/state.json", b"a writer died here")
    checkpoints.save(store, content(4), keep=2)
    assert store.names("checkpoints") == ["step-000000002", "step-000000004"]


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
