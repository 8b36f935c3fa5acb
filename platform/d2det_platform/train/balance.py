"""Who computes how many pictures: probed at the start, measured all the time, dealt anew on drift.

The decisions are those of `plan`, made by every rank alike from the same gathered measurements.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from d2det_platform.train.estimate import SpeedEstimate
from d2det_platform.train.options import TrainOptions
from d2det_platform.train.plan import (
    PASS_COST,
    BatchPlan,
    RankSpeed,
    best_plan,
    equal_plan,
    replan,
    stragglers,
)

logger = logging.getLogger(__name__)

BALANCE_EVERY_STEPS = 20
"""Steps of one measurement: enough to even out picture sizes and numbers of objects."""
_PLAN, _DEVICES = "images_per_rank", "devices"


@dataclass(frozen=True)
class Standing:
    """One look at the group: what it computes, who is waited for, and whether the plan changed."""

    images_per_s: tuple[float, ...]
    plan: BatchPlan
    stragglers: tuple[int, ...]
    is_new_plan: bool

    def as_row(self) -> dict[str, Any]:
        """Returns the values of a row of the run's log."""
        row: dict[str, Any] = {
            "images_per_s": [round(speed, 3) for speed in self.images_per_s],
            "images_per_rank": list(self.plan.images_per_rank),
        }
        if self.stragglers:
            row["stragglers"] = list(self.stragglers)
        return row


class Balance:
    """The plan of the group and the measurements behind it."""

    def __init__(
        self, options: TrainOptions, numbers: dict[str, Any], devices: Sequence[str]
    ) -> None:
        """Begins with the plan the checkpoint knows for these very devices, or with equal shares.

        Args:
            options: of the run.
            numbers: those of the checkpoint; the plan is kept among them.
            devices: of the ranks, in their order.
        """
        self._numbers = numbers
        self._devices = list(devices)
        self._is_measured = options.cluster.shares == "measured" and len(devices) > 1
        self._limits: list[int | None] = [None] * len(devices)
        self._estimates: list[SpeedEstimate | None] = [None] * len(devices)
        global_batch = options.train.global_batch
        plan = equal_plan(global_batch, len(devices))
        self.is_known = False
        if self._is_measured and numbers.get(_DEVICES) == self._devices:
            known = BatchPlan(tuple(numbers[_PLAN]))
            self.is_known = known.global_batch == global_batch
            plan = known if self.is_known else plan
        self._take(plan)

    @property
    def is_measured(self) -> bool:
        """Whether shares follow speeds at all."""
        return self._is_measured

    def speed_of(self, rank: int) -> float | None:
        """Returns the images/s of `rank` as far as it is known."""
        estimate = self._estimates[rank]
        return None if estimate is None else estimate.images_per_s

    def begin(self, speeds: Sequence[RankSpeed]) -> None:
        """Makes the first plan from a probe of all ranks, unless these devices have one."""
        self._limits = [speed.images_per_pass for speed in speeds]
        self._estimates = [SpeedEstimate(speed.images_per_s) for speed in speeds]
        if self._is_measured and not self.is_known:
            self._take(best_plan(self.plan.global_batch, speeds))

    def update(self, measured: Sequence[float | None]) -> Standing | None:
        """Takes the images/s of all ranks; None for a rank that had no picture.

        Returns:
            How the group stands, or None where too little is known.
        """
        for rank, speed in enumerate(measured):
            self._learn(rank, speed)
        speeds = self._speeds()
        if speeds is None:
            return None
        current = self.plan
        slow = stragglers(current, speeds)
        if self._is_measured:
            self._take(replan(current, speeds))
        return Standing(
            images_per_s=tuple(speed.images_per_s for speed in speeds),
            plan=self.plan,
            stragglers=slow,
            is_new_plan=self.plan != current,
        )

    def _take(self, plan: BatchPlan) -> None:
        self.plan = plan
        if self._is_measured:
            kept = {_PLAN: list(plan.images_per_rank), _DEVICES: self._devices}
            self._numbers.update(kept)

    def _learn(self, rank: int, speed: float | None) -> None:
        if speed is None:
            return  # a rank without pictures stays what it was
        limit = self._limits[rank]
        # A share in several passes is measured with their cost, which the plan adds itself.
        if limit is not None and self.plan.images_per_rank[rank] > limit:
            speed *= PASS_COST
        estimate = self._estimates[rank]
        if estimate is None:
            self._estimates[rank] = SpeedEstimate(speed)
        else:
            estimate.add(speed)

    def _speeds(self) -> list[RankSpeed] | None:
        """What is known of all ranks; None while one was never measured."""
        known = [estimate.images_per_s for estimate in self._estimates if estimate is not None]
        if len(known) < len(self._estimates):
            return None
        return [
            RankSpeed(speed, self.plan.global_batch, limit)
            for speed, limit in zip(known, self._limits, strict=True)
        ]
