"""Rows of unequal length, expanded without a Python loop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def ragged(starts: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Returns, for rows of `counts[i]` numbers from `starts[i]` on, each number's row and itself.

    >>> [part.tolist() for part in ragged(np.array([5, 0]), np.array([2, 3]))]
    [[0, 0, 1, 1, 1], [5, 6, 0, 1, 2]]
    """
    owner = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    return owner, np.repeat(starts, counts) + within
