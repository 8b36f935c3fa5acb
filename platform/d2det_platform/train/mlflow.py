"""The curves of a run in MLflow, which is not installed with us."""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from d2det_platform.train.options import TrainOptions

logger = logging.getLogger(__name__)

LAST_WORDS_S = 30.0
"""How long the end of a run waits for the server to take what it has not taken yet."""


class MlFlow:
    """An MLflow run of the run's name; a restart goes on with it.

    A thread talks to the server. One that is slow, or gone for a while, holds nothing up: what it
    does not take is missing there, and stands in the run's own log.
    """

    def __init__(self, options: TrainOptions, first_step: int) -> None:
        self._options, self._goes_on = options, first_step > 0
        self._rows: queue.SimpleQueue[tuple[int, float, Mapping[str, float]] | None]
        self._rows = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._rows.put((step, time.time(), values))

    def flush(self) -> None:
        """The thread sends everything as soon as the server takes it."""

    def close(self) -> None:
        """See `Tracker`; a server that does not answer is left with what it has."""
        self._rows.put(None)
        self._thread.join(LAST_WORDS_S)
        if self._thread.is_alive():
            logger.warning("MLflow did not take the last values in %.0f s", LAST_WORDS_S)

    def _send(self) -> None:
        """What the thread does until `close`."""
        run: _Run | None = None
        while (row := self._rows.get()) is not None:
            step, seconds, values = row
            try:
                run = run or _Run.open(self._options, goes_on=self._goes_on)
                run.add(step, seconds, values)
            except Exception as error:  # MLflow's own, its database's, or of a connection
                logger.warning("MLflow does not take the values of step %d: %.200s", step, error)
        try:
            if run is not None:
                run.end()
        except Exception as error:
            logger.warning("MLflow does not take the end of the run: %.200s", error)


@dataclass
class _Run:
    """A run on the server, and the options it is still to be told."""

    client: Any
    key: str
    params: Sequence[Any] = ()

    @staticmethod
    def open(options: TrainOptions, *, goes_on: bool) -> _Run:
        """The run to go on with if there is one, else a new one."""
        from mlflow.entities import Param

        assert options.mlflow is not None
        client, name = _client(options.mlflow), f"d2det {options.preset}"
        experiment = client.get_experiment_by_name(name)
        key = experiment.experiment_id if experiment else client.create_experiment(name)
        found = client.search_runs([key], f"attributes.run_name = '{options.name}'")
        if goes_on and found:
            run = _Run(client, found[0].info.run_id)
            client.update_run(run.key, status="RUNNING")
            return run
        chosen = {"train": options.train.model_dump(), "input": options.input.model_dump()}
        params = [
            Param(f"{section}.{field}", str(value))
            for section, values in chosen.items()
            for field, value in values.items()
        ]
        return _Run(client, client.create_run(key, run_name=options.name).info.run_id, params)

    def add(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Sends what was logged at `seconds` of the system's clock, in one call."""
        from mlflow.entities import Metric

        at_ms = int(1000 * seconds)
        metrics = [Metric(name, value, at_ms, step) for name, value in values.items()]
        self.client.log_batch(self.key, metrics=metrics, params=self.params)
        self.params = ()

    def end(self) -> None:
        """Says that no more will come."""
        self.client.set_terminated(self.key)


def check_mlflow(uri: str) -> None:
    """Returns only if MLflow is installed and answers at `uri`; a ValueError says what to do."""
    if importlib.util.find_spec("mlflow") is None:
        raise ValueError("--mlflow needs mlflow on every worker: pip install mlflow-skinny")
    try:
        _client(uri).search_experiments(max_results=1)
    except Exception as error:  # MLflow's own, or that of its database
        raise ValueError(f"--mlflow {uri} does not answer: {error!s:.300}") from None


def _client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    # Seven times, as is the default, would take four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    return MlflowClient(uri)
