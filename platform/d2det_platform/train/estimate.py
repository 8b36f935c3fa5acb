"""A rank's speed from noisy measurements: steady against noise, quick after a real change.

Of many ranks one is always measured slow by chance, so plans made from single measurements move
pictures back and forth. The mean of many measurements does not, but would notice a throttled GPU
late; hence measurements that leave the usual scatter twice in a row begin a new mean.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

MEMORY = 30
"""Measurements that are averaged at most."""
OUTSIDE = 3.5
"""Standard deviations beyond which a measurement is not noise; by chance once in 2000."""
MIN_SCATTER = 0.015
"""Deviation assumed at least, of the logarithm: a few measurements may agree by chance."""
MIN_KNOWN = 4
"""Measurements from which the scatter is taken."""


class SpeedEstimate:
    """The speed of one rank; logarithms are averaged, as noise is relative."""

    def __init__(self, first: float) -> None:
        """Begins with one measurement, in images/s."""
        self._logs: deque[float] = deque([math.log(first)], maxlen=MEMORY)
        self._odd: list[float] = []

    @property
    def images_per_s(self) -> float:
        """The present estimate."""
        return math.exp(statistics.fmean(self._logs))

    def add(self, images_per_s: float) -> None:
        """Takes another measurement into account."""
        log = math.log(images_per_s)
        distance = log - statistics.fmean(self._logs)
        if abs(distance) <= OUTSIDE * self._scatter():
            self._logs.append(log)
            self._odd = []
            return
        if self._odd and (self._odd[0] > statistics.fmean(self._logs)) != (distance > 0):
            self._odd = []
        self._odd.append(log)
        if len(self._odd) == 2:
            self._logs = deque(self._odd, maxlen=MEMORY)
            self._odd = []

    def _scatter(self) -> float:
        if len(self._logs) < MIN_KNOWN:
            return 2 * MIN_SCATTER
        return max(statistics.stdev(self._logs), MIN_SCATTER)
