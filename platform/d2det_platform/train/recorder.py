"""What the first rank writes down: log, curves, and lines for the person who watches."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from d2det_platform.store import RunStore
from d2det_platform.train.balance import Standing
from d2det_platform.train.metrics import MetricsLog
from d2det_platform.train.options import TrainOptions
from d2det_platform.train.progress import Progress
from d2det_platform.train.trackers import STEPS_PER_POINT, build_trackers

logger = logging.getLogger(__name__)


class Recorder:
    """The records of a run that goes on from `first_step`; kept by rank 0 only."""

    def __init__(self, options: TrainOptions, *, first_step: int, steps_per_epoch: int) -> None:
        train = options.train
        self._images = train.global_batch
        self._steps_per_epoch = steps_per_epoch
        self._log = MetricsLog(RunStore(options.run_url), first_step)
        self._progress = Progress(train.epochs * steps_per_epoch, steps_per_epoch)
        self._trackers = build_trackers(options, first_step)

    def step(
        self, step: int, losses: Mapping[str, float], *, seconds: float, rate: float, norm: float
    ) -> None:
        """Records a finished step: its losses by name, the learning rate and gradient norm."""
        values = {**losses, "lr": rate, "grad_norm": norm}
        self._log.add(step, epoch=self._epoch(step), seconds=seconds, **values)
        self._progress.step(step, losses, self._images)
        if step % STEPS_PER_POINT == 0:
            self._track(step, {**values, "seconds": seconds})

    def skipped(self, step: int, losses: Mapping[str, float], reason: str) -> None:
        """Records a step that left the weights as they were."""
        self._log.add(step, epoch=self._epoch(step), event=f"skipped: {reason}")
        figures = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
        logger.error("step %d: %s (%s); the weights stay as they were", step, reason, figures)

    def standing(self, step: int, standing: Standing) -> None:
        """Records the speeds of the ranks and, if so, that pictures are dealt anew."""
        speeds = standing.images_per_s
        self._log.add(step, **standing.as_row())
        self._track(step, {f"images_per_s/rank{r}": speed for r, speed in enumerate(speeds)})
        for rank in standing.stragglers:
            logger.warning("step %d: the others wait for rank %d", step, rank)
        if standing.is_new_plan:
            logger.warning(
                "step %d: ranks compute %s images/s; pictures per step are now %s",
                step,
                ", ".join(f"{speed:.2f}" for speed in speeds),
                standing.plan.images_per_rank,
            )

    def epoch(
        self, step: int, *, images_per_s: Sequence[float | None], peak_bytes: Sequence[int]
    ) -> None:
        """Shows the line of an epoch; see `Progress.epoch`."""
        self._log.add(step, peak_bytes=list(peak_bytes))
        self._progress.epoch(step, self._images, images_per_s=images_per_s, peak_bytes=peak_bytes)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the scores of the weights after `step`."""
        self._log.add_evaluation(step, dict(metrics))
        self._progress.evaluation(step, metrics)
        self._track(step, metrics)

    def write(self) -> None:
        """Makes everything durable; call it before the checkpoint of the same step."""
        self._log.write()
        for tracker in self._trackers:
            tracker.flush()

    def close(self) -> None:
        """Ends the curves."""
        for tracker in self._trackers:
            tracker.close()

    def _track(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(step, values)

    def _epoch(self, step: int) -> int:
        return (step - 1) // self._steps_per_epoch
