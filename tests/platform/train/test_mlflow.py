"""Curves in MLflow: on a server that fails at will, and in MLflow itself where it is installed."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Container
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from d2det_platform.train import mlflow
from d2det_platform.train.options import DataOptions, TrainOptions
from d2det_platform.train.trackers import build_trackers


def options(folder: Path, **values: object) -> TrainOptions:
    data = DataOptions(train_images="-", train_annotations="-")
    return TrainOptions(data=data, storage=str(folder), tensorboard=False, **values)


class Server:
    """What a run in MLflow holds, as its client would be told."""

    def __init__(self) -> None:
        self.points: list[tuple[str, int, float]] = []
        self.params: dict[str, str] = {}
        self.runs: list[str] = []
        self.status = ""
        self.fails: Container[int] = ()
        self.calls = 0
        self.answers = threading.Event()
        self.answers.set()

    def client(self, uri: str) -> Any:
        return SimpleNamespace(
            search_experiments=lambda max_results: self._answer([]),
            get_experiment_by_name=lambda name: self._answer(None),
            create_experiment=lambda name: self._answer("1"),
            search_runs=lambda keys, where: self._answer([_run(key) for key in self.runs]),
            create_run=self._create_run,
            update_run=self._update_run,
            log_batch=self._log_batch,
            set_terminated=lambda key: self._update_run(key, "FINISHED"),
        )

    def _create_run(self, experiment: str, run_name: str) -> Any:
        self.runs.append(self._answer(run_name))
        self.status = "RUNNING"
        return _run(run_name)

    def _update_run(self, key: str, status: str) -> None:
        self.status = self._answer(status)

    def _log_batch(self, key: str, metrics: Any, params: Any) -> None:
        self.points += self._answer([(m.key, m.step, m.value) for m in metrics])
        self.params |= {param.key: param.value for param in params}

    def _answer(self, value: Any) -> Any:
        assert self.answers.wait(20)
        self.calls += 1
        if self.calls in self.fails:
            raise RuntimeError("connection refused")
        return value


def _run(key: str) -> Any:
    return SimpleNamespace(info=SimpleNamespace(run_id=key))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    modules = {name: ModuleType(name) for name in ("mlflow", "mlflow.tracking", "mlflow.entities")}
    modules["mlflow.tracking"].MlflowClient = server.client
    modules["mlflow.entities"].Metric = lambda key, value, timestamp, step: SimpleNamespace(
        key=key, value=value, step=step
    )
    modules["mlflow.entities"].Param = lambda key, value: SimpleNamespace(key=key, value=value)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: modules[name])
    return server


def test_a_restart_goes_on_with_the_run(server: Server, tmp_path: Path) -> None:
    chosen = options(tmp_path, mlflow="http://somewhere")
    for first_step in (0, 10):
        (tracker,) = build_trackers(chosen, first_step)
        tracker.log(first_step + 10, {"loss": 1.5, "lr": 0.1})
        tracker.close()
    assert server.runs == ["run"]
    assert server.points == [("loss", 10, 1.5), ("lr", 10, 0.1), ("loss", 20, 1.5), ("lr", 20, 0.1)]
    assert server.params["train.lr"] == str(chosen.train.lr)
    assert server.status == "FINISHED"


@pytest.mark.parametrize("number_of_call", [1, 3, 4, 5])
def test_a_server_that_is_away_for_a_while_gets_what_comes_later(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, number_of_call: int
) -> None:
    server.fails = [number_of_call]
    chosen = options(tmp_path, mlflow="http://somewhere")
    (tracker,) = build_trackers(chosen, 0)
    with caplog.at_level(logging.WARNING):
        tracker.log(10, {"loss": 1.0})
        tracker.log(20, {"loss": 2.0})
        tracker.close()
    assert "step 10: connection refused" in caplog.text
    assert server.points == [("loss", 20, 2.0)]
    assert server.params["train.lr"] == str(chosen.train.lr)
    assert server.runs == ["run"]
    assert server.status == "FINISHED"


def test_a_server_that_hangs_holds_up_neither_steps_nor_the_end(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(mlflow, "LAST_WORDS_S", 0.05)
    server.answers.clear()
    (tracker,) = build_trackers(options(tmp_path, mlflow="http://somewhere"), 0)
    for step in (10, 20):
        tracker.log(step, {"loss": 1.0})  # returns although nothing was taken
    tracker.close()
    assert "did not take the last values" in caplog.text
    assert server.points == []
    server.answers.set()
    tracker._thread.join(20)
    assert [step for _, step, _ in server.points] == [10, 20]


def test_a_server_that_does_not_answer_is_refused_before_training(server: Server) -> None:
    mlflow.check_mlflow("http://somewhere")
    server.fails = range(100)
    with pytest.raises(ValueError, match=r"--mlflow http://somewhere .*connection refused"):
        mlflow.check_mlflow("http://somewhere")


def test_mlflow_that_is_missing_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install mlflow"):
        mlflow.check_mlflow("file:///tmp/ml")


def test_mlflow_itself_goes_on_with_the_run_of_the_same_name(tmp_path: Path) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    chosen = options(tmp_path, mlflow=f"sqlite:///{tmp_path}/ml.db")
    mlflow.check_mlflow(chosen.mlflow)
    for first_step, step in ((0, 10), (10, 20)):
        (tracker,) = build_trackers(chosen, first_step)
        tracker.log(step, {"loss": step / 10})
        tracker.close()
    client = tracking.MlflowClient(chosen.mlflow)
    (experiment,) = client.search_experiments(filter_string="name LIKE 'd2det%'")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((point.step, point.value) for point in history) == [(10, 1.0), (20, 2.0)]
    assert run.data.params["train.lr"] == str(chosen.train.lr)
    assert run.info.status == "FINISHED"
