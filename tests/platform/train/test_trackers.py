from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from d2det_platform.store import RunStore
from d2det_platform.train.options import DataOptions, TrainOptions
from d2det_platform.train.trackers import TENSORBOARD_FOLDER, TensorBoard, build_trackers


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


def options(folder: Path, **values: object) -> TrainOptions:
    data = DataOptions(train_images="-", train_annotations="-")
    return TrainOptions(data=data, storage=str(folder), **values)


def test_mlflow_that_is_missing_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install mlflow"):
        build_trackers(options(tmp_path, mlflow="file:///tmp/ml", tensorboard=False), 0)


def test_mlflow_goes_on_with_the_run_of_the_same_name(tmp_path: Path) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    chosen = options(tmp_path, mlflow=f"sqlite:///{tmp_path}/ml.db", tensorboard=False)
    for first_step, step in ((0, 10), (10, 20)):
        (tracker,) = build_trackers(chosen, first_step)
        tracker.log(step, {"loss": step / 10})
        tracker.close()
    client = tracking.MlflowClient(chosen.mlflow)
    (experiment,) = client.search_experiments(filter_string="name LIKE 'd2det%'")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((point.step, point.value) for point in history) == [(10, 1.0), (20, 2.0)]
    assert run.info.status == "FINISHED"
