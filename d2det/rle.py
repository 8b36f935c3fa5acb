"""Masks as COCO run lengths, handled as runs: no canvas, so cost does not follow the scene's size.

Runs count pixels down the columns (column-major). pycocotools does the same with 32-bit runs, which
overflow on scenes of more than 4 gigapixels; here they are int64.

Letters: R runs, V intervals. H x W pixels of the frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from d2det.ragged import Ints, ragged
from d2det.structures import Rle

_DIGIT_BITS, _MORE, _ZERO = 5, 32, 48
"""COCO's text: 5 bits a character, low digits first, the sixth bit: more follow; "0" is 0."""


def read_counts(counts: bytes) -> Ints:
    """Returns the (R,) run lengths, alternately off and on, in COCO's compressed text."""
    return read_many([counts])[0]


def read_many(texts: Sequence[bytes]) -> tuple[Ints, Ints]:
    """Returns the run lengths of M masks end to end, (R,), and the (M + 1,) places they begin at.

    All texts at once: the masks of a picture cost little more than one.
    """
    digits = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - _ZERO
    ends = np.flatnonzero((digits & _MORE) == 0)
    begins = np.searchsorted(ends, np.cumsum([0, *map(len, texts)]))
    if len(ends) == 0:
        return digits, begins
    starts = np.concatenate(([0], ends[:-1] + 1))
    place = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((digits & 31) << (_DIGIT_BITS * place), starts)
    is_negative = (digits[ends] & 16) != 0
    values -= is_negative.astype(np.int64) << (_DIGIT_BITS * (ends - starts + 1))
    # From the fourth on, each is the difference to the one two before.
    number = np.arange(len(values)) - np.repeat(begins[:-1], np.diff(begins))
    for first in (1, 2):
        chain = np.flatnonzero((number >= first) & (number % 2 == first % 2))
        values[chain] = _restarting_cumsum(values[chain], number[chain] == first)
    return values, begins


def _restarting_cumsum(values: Ints, restarts: NDArray[np.bool_]) -> Ints:
    """Running sums that begin anew where `restarts` is true; it is true at the first entry."""
    total, first = np.cumsum(values), np.flatnonzero(restarts)
    return total - np.repeat(total[first] - values[first], np.diff([*first, len(values)]))


def write_counts(runs: Ints) -> bytes:
    """Returns COCO's compressed text of (R,) run lengths: undoes `read_counts`."""
    values = runs.astype(np.int64)
    values[3:] -= runs[1:-2]
    lengths = np.ones(len(values), np.int64)
    rest = values >> (_DIGIT_BITS - 1)  # 0 or -1 when the digits so far hold the sign too
    while (more := (rest != 0) & (rest != -1)).any():
        lengths += more
        rest >>= _DIGIT_BITS
    owner, place = ragged(np.zeros_like(lengths), lengths)
    digits = (values[owner] >> (_DIGIT_BITS * place)) & 31
    has_more = place + 1 < lengths[owner]
    return (digits + _MORE * has_more + _ZERO).astype(np.uint8).tobytes()


def to_intervals(rle: Rle) -> Ints:
    """Returns the (V, 2) ascending [start, end) column-major pixel numbers that are on."""
    edges = np.cumsum(read_counts(rle["counts"]))
    return edges[: len(edges) // 2 * 2].reshape(-1, 2)


def from_intervals(intervals: Ints, size: tuple[int, int]) -> Rle:
    """Returns the encoding of (V, 2) intervals in a frame of size (H, W).

    They must be sorted by their start; empty, touching and overlapping ones are fine.
    """
    intervals = intervals[intervals[:, 1] > intervals[:, 0]]
    reach = np.maximum.accumulate(intervals[:, 1])
    opens = np.concatenate(([True], intervals[1:, 0] > reach[:-1]))[: len(intervals)]
    firsts = np.flatnonzero(opens)
    lasts = np.concatenate((firsts[1:], [len(intervals)]))[: len(firsts)] - 1
    edges = np.stack((intervals[firsts, 0], reach[lasts]), 1).ravel()
    runs = np.diff(np.concatenate(([0], edges)))
    if (rest := size[0] * size[1] - (int(edges[-1]) if len(edges) else 0)) > 0:
        runs = np.append(runs, rest)
    return Rle(size=size, counts=write_counts(runs))


def area(rle: Rle) -> int:
    """Returns the number of pixels that are on."""
    return int(read_counts(rle["counts"])[1::2].sum())


def union(masks: Sequence[Rle]) -> Rle:
    """Returns the pixels that are on in any of `masks`, which share one frame."""
    intervals = np.concatenate([to_intervals(mask) for mask in masks])
    return from_intervals(intervals[np.argsort(intervals[:, 0], kind="stable")], masks[0]["size"])


def place(mask: Rle, x: int, y: int, size: tuple[int, int]) -> Rle:
    """Returns the mask of a window whose corner lies at (x, y) in the scene of size (H, W)."""
    window_height, height = mask["size"][0], size[0]
    intervals = to_intervals(mask)
    intervals = intervals[intervals[:, 1] > intervals[:, 0]]
    first, last = intervals[:, 0] // window_height, (intervals[:, 1] - 1) // window_height
    # A run that goes over the foot of a column does so no longer in a taller frame: cut it there.
    owner, column = ragged(first, last - first + 1)
    low = np.maximum(intervals[owner, 0], column * window_height)
    high = np.minimum(intervals[owner, 1], (column + 1) * window_height)
    shift = (column + x) * height + y - column * window_height
    return from_intervals(np.stack((low + shift, high + shift), 1), size)
