"""Where losses and metrics go besides the log: TensorBoard, and MLflow where it is asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from d2det_platform.store import RunStore
from d2det_platform.train.mlflow import MlFlow
from d2det_platform.train.options import TrainOptions

STEPS_PER_POINT = 10
"""Steps between two points of a curve: a long run would otherwise write gigabytes."""
TENSORBOARD_FOLDER = "tb"


class Tracker(Protocol):
    """Something that draws curves."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the values after `step` steps."""

    def flush(self) -> None:
        """Makes visible what was logged; called with every checkpoint."""

    def close(self) -> None:
        """Ends the curves."""


def build_trackers(options: TrainOptions, first_step: int) -> list[Tracker]:
    """Returns the trackers of the run; curves are continued after `first_step`."""
    trackers: list[Tracker] = []
    if options.tensorboard:
        trackers.append(TensorBoard(RunStore(options.run_url), first_step))
    if options.mlflow is not None:
        trackers.append(MlFlow(options, first_step))
    return trackers


class TensorBoard:
    """Event files in tb/; points a restart takes again are marked as void, as TensorBoard does."""

    def __init__(self, store: RunStore, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._store = store
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        if store.is_local:
            folder = store.path(TENSORBOARD_FOLDER)
        else:
            self._copy = tempfile.TemporaryDirectory()
            folder = self._copy.name
        # A reader of old event files drops their points from this step on.
        purge = first_step + 1 if first_step else None
        self._writer = SummaryWriter(folder, purge_step=purge)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """See `Tracker`; an object store gets the whole file again."""
        self._writer.flush()
        if self._copy is not None:
            for file in Path(self._copy.name).iterdir():
                self._store.write(f"{TENSORBOARD_FOLDER}/{file.name}", file.read_bytes())

    def close(self) -> None:
        """See `Tracker`."""
        self.flush()
        self._writer.close()
        if self._copy is not None:
            self._copy.cleanup()
