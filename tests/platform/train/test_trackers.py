from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from d2det_platform.store import RunStore
from d2det_platform.train.trackers import TENSORBOARD_FOLDER, TensorBoard


def points(folder: Path, name: str) -> list[tuple[int, float]]:
    reader = EventAccumulator(str(folder / TENSORBOARD_FOLDER))
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars(name)]


def test_curves_go_on_after_a_restart_without_the_steps_that_were_lost(tmp_path: Path) -> None:
    first = TensorBoard(RunStore(str(tmp_path)), 0)
    for step in (10, 20, 30):
        first.log(step, {"loss": float(step)})
    first.close()
    second = TensorBoard(RunStore(str(tmp_path)), 20)
    second.log(30, {"loss": 0.5})
    second.close()
    assert points(tmp_path, "loss") == [(10, 10.0), (20, 20.0), (30, 0.5)]


def test_an_object_store_gets_whole_files(tmp_path: Path) -> None:
    store = RunStore("memory://curves")
    tracker = TensorBoard(store, 0)
    tracker.log(10, {"loss": 1.5})
    tracker.close()
    (name,) = store.names(TENSORBOARD_FOLDER)
    (tmp_path / TENSORBOARD_FOLDER).mkdir()
    (tmp_path / TENSORBOARD_FOLDER / name).write_bytes(store.read(f"{TENSORBOARD_FOLDER}/{name}"))
    assert points(tmp_path, "loss") == [(10, 1.5)]
