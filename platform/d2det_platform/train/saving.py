"""When a checkpoint is due, and taking it."""

from __future__ import annotations

import logging
import time

from d2det_platform.store import RunStore
from d2det_platform.train import checkpoints
from d2det_platform.train.checkpoints import Checkpoint
from d2det_platform.train.options import TrainOptions
from d2det_platform.train.recorder import Recorder
from d2det_platform.train.state import TrainingState

logger = logging.getLogger(__name__)


class Saver:
    """Takes the checkpoints of a run; on rank 0."""

    def __init__(
        self, options: TrainOptions, store: RunStore, state: TrainingState, recorder: Recorder
    ) -> None:
        self._options, self._store = options, store
        self._state, self._recorder = state, recorder
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Returns whether the interval in steps or in seconds has passed."""
        every = self._options.checkpoint_every_steps
        return (every is not None and self._state.step % every == 0) or (
            time.monotonic() - self._saved_at >= self._options.checkpoint_every_s
        )

    def save(self) -> None:
        """Writes log and checkpoint, in this order: resuming cuts the log to the checkpoint.

        Raises:
            OSError: the storage does not take them; the checkpoints before are as they were.
        """
        self._recorder.write()
        checkpoint = Checkpoint(self._state.step, self._state.files())
        checkpoints.save(self._store, checkpoint, keep=self._options.checkpoints_kept)
        self._saved_at = time.monotonic()
