"""What a person watching a run sees: how much is done, how fast, what failed, how long it takes."""

from __future__ import annotations

import datetime
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import TextIO

from d2det_platform.label.plan import Plan, Shard
from d2det_platform.label.work import UnitResult

LINE_EVERY_S, REDRAW_EVERY_S = 10.0, 0.5
RATE_OVER_S = 60.0
"""Speeds are those of the last minute: the start, or a scene in between, does not blur them."""


@dataclass
class Tally:
    """Counts of a run so far.

    cost: network pixels, the measure of what is done and left.
    """

    pictures: int = 0
    megapixels: float = 0.0
    errors: int = 0
    cost: int = 0


class Progress:
    """Prints a line now and then; on a terminal one that changes in place."""

    def __init__(self, plan: Plan, *, out: TextIO = sys.stderr) -> None:
        self._out, self._is_terminal = out, out.isatty()
        self._total, self._total_cost = plan.total("pictures"), plan.total("cost")
        self._shards = {shard.index: shard for shard in plan.shards}
        self.tally = Tally(errors=plan.total("refused"), pictures=plan.total("refused"))
        self._started = time.monotonic()
        self._recent: deque[tuple[float, int, float, int]] = deque()
        self._printed_at = 0.0

    def skip(self, shard: Shard, *, units: int) -> None:
        """Takes note of units of a shard that an earlier driver has done."""
        share = units / shard.units if shard.units else 1.0
        self.tally.pictures += round(share * (shard.pictures - shard.refused))
        self.tally.cost += round(share * shard.cost)

    def add(self, result: UnitResult) -> None:
        """Takes note of a unit."""
        shard, tally = self._shards[result.shard], self.tally
        tally.pictures += result.pictures
        tally.megapixels += result.megapixels
        tally.errors += result.errors
        tally.cost += shard.cost // max(shard.units, 1)
        self._recent.append((time.monotonic(), tally.pictures, tally.megapixels, tally.cost))
        self.show()

    def show(self, *, now: bool = False) -> None:
        """Prints the line if the last one is old, or `now`."""
        time_now = time.monotonic()
        every = REDRAW_EVERY_S if self._is_terminal else LINE_EVERY_S
        if not now and time_now - self._printed_at < every:
            return
        self._printed_at = time_now
        start, end = ("\r", "\x1b[K") if self._is_terminal else ("", "\n")
        self._out.write(f"{start}{self.line()}{end}")
        self._out.flush()

    def line(self) -> str:
        """Returns the line."""
        tally = self.tally
        done = f"{tally.pictures:,}/{self._total:,} pictures"
        errors = f"{tally.errors:,} errors"
        pictures_s, megapixels_s, cost_s = self._speeds()
        if not cost_s:
            return f"{done}, {errors}"
        left_s = max(0, self._total_cost - tally.cost) / cost_s
        left = datetime.timedelta(seconds=round(left_s))
        speed = f"{pictures_s:.1f} pictures/s, {megapixels_s:.1f} MP/s"
        return f"{done}, {speed}, {errors}, {left} left"

    def close(self) -> None:
        """Prints the last line."""
        self.show(now=True)
        if self._is_terminal:
            self._out.write("\n")

    @property
    def seconds(self) -> float:
        """Returns the time since the first unit could have been done."""
        return time.monotonic() - self._started

    def _speeds(self) -> tuple[float, float, float]:
        while len(self._recent) > 2 and self._recent[-1][0] - self._recent[0][0] > RATE_OVER_S:
            self._recent.popleft()
        if len(self._recent) < 2 or self._recent[-1][0] == self._recent[0][0]:
            return 0.0, 0.0, 0.0
        first, last = self._recent[0], self._recent[-1]
        seconds = last[0] - first[0]
        return (
            (last[1] - first[1]) / seconds,
            (last[2] - first[2]) / seconds,
            (last[3] - first[3]) / seconds,
        )
