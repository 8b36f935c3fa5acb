"""Which detections of different windows show the same object, decided where both windows look.

Two windows agree on an object when, inside their common region, their boxes agree - whether the
object lies whole in one of them, in both or in neither. So boxes are compared after clipping to
that region. Candidates come from a join over (pair of windows, label), never from all pairs.

Letters: W windows, D detections of all windows together, P pairs of windows, M matches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from d2det.ragged import Ints, ragged

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_MAX_CANDIDATES = 2_000_000
"""Pairs compared at once; bounds memory to some 300 MB however crowded the windows are."""


@dataclass(frozen=True)
class Boxes:
    """Detections of all windows in one frame.

    corners: (D, 4) x1, y1, x2, y2.  labels: (D,).  window: (D,) position in the list of windows.
    """

    corners: Floats
    labels: Ints
    window: Ints


@dataclass(frozen=True)
class Overlaps:
    """Pairs of detections of one class in different windows whose clipped boxes intersect.

    first, second: (M,) positions of the detections, first < second.
    iou: (M,) intersection over union inside the windows' common region.
    ios: (M,) intersection over the smaller, there.
    in_overlap: (D,) whether the centre of a detection lies in another window too.
    """

    first: Ints
    second: Ints
    iou: Floats
    ios: Floats
    in_overlap: Flags


def find_overlaps(boxes: Boxes, windows: Floats) -> Overlaps:
    """Returns the overlaps of D boxes, found in windows (W, 4) x1, y1, x2, y2."""
    low, high = _window_pairs(windows)
    regions = _intersect(windows[low], windows[high])
    order = np.argsort(boxes.window, kind="stable")
    starts = np.searchsorted(boxes.window[order], np.arange(len(windows) + 1))
    in_overlap = np.zeros(len(boxes.labels), bool)
    sides: list[_Side] = []
    for window in (low, high):
        pair, place = ragged(starts[window], starts[window + 1] - starts[window])
        index = order[place]
        corners, region = boxes.corners[index], regions[pair]
        centre = (corners[:, :2] + corners[:, 2:]) / 2
        inside = ((centre >= region[:, :2]) & (centre < region[:, 2:])).all(1)
        in_overlap[index[inside]] = True
        clipped = _intersect(corners, region)
        seen = (clipped[:, :2] < clipped[:, 2:]).all(1)
        sides.append(_Side(pair[seen], boxes.labels[index[seen]], index[seen], clipped[seen]))
    return _join(sides[0], sides[1], in_overlap)


@dataclass(frozen=True)
class _Side:
    """The detections that one window of each pair has in their common region."""

    pair: Ints
    labels: Ints
    index: Ints
    clipped: Floats


def _window_pairs(windows: Floats) -> tuple[Ints, Ints]:
    """Positions (P,) and (P,) of the windows that share pixels, each pair once."""
    order = np.argsort(windows[:, 1], kind="stable")
    tops, bottoms = windows[order, 1], windows[order, 3]
    # In the order of their tops, those that begin before the bottom of one follow it directly.
    after = np.arange(len(order)) + 1
    first, second = ragged(after, np.maximum(np.searchsorted(tops, bottoms) - after, 0))
    a, b = order[first], order[second]
    shared = (windows[a, 0] < windows[b, 2]) & (windows[b, 0] < windows[a, 2])
    a, b = a[shared], b[shared]
    return np.minimum(a, b), np.maximum(a, b)


def _join(left: _Side, right: _Side, in_overlap: Flags) -> Overlaps:
    """Compares the two sides of each pair of windows, class by class, from top to bottom."""
    # One sorted axis for all: (pair, label) after (pair, label), each `stretch` long, tops inside.
    num_labels = 1 + max(left.labels.max(initial=0), right.labels.max(initial=0))
    stretch = 2 + max(left.clipped.max(initial=0), right.clipped.max(initial=0))
    tops = (right.pair * num_labels + right.labels) * stretch + right.clipped[:, 1]
    order = np.argsort(tops, kind="stable")
    tallest = np.zeros(1 + left.pair.max(initial=0) + right.pair.max(initial=0))
    np.maximum.at(tallest, right.pair, right.clipped[:, 3] - right.clipped[:, 1])
    # A pixel more than needed on both ends makes up for rounding on the long axis.
    origin = (left.pair * num_labels + left.labels) * stretch
    earliest = np.maximum(left.clipped[:, 1] - tallest[left.pair] - 1, 0)
    begin = np.searchsorted(tops[order], origin + earliest)
    counts = np.searchsorted(tops[order], origin + left.clipped[:, 3] + 1) - begin
    parts = []
    for chunk in _chunks(counts):
        i, place = ragged(begin[chunk], counts[chunk])
        i, j = i + chunk.start, order[place]
        parts.append(_measure(left.index[i], right.index[j], left.clipped[i], right.clipped[j]))
    first, second, iou, ios = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Overlaps(first.astype(np.int64), second.astype(np.int64), iou, ios, in_overlap)


def _chunks(counts: Ints) -> Iterator[slice]:
    """Yields slices of rows with about _MAX_CANDIDATES candidates together, at least one slice."""
    total = np.cumsum(counts)
    edges = np.arange(0, total[-1] if len(total) else 0, _MAX_CANDIDATES)
    rows = [0, *np.unique(np.searchsorted(total, edges[1:])).tolist(), len(counts)]
    yield from (slice(a, b) for a, b in pairwise(rows))


def _measure(first: Ints, second: Ints, a: Floats, b: Floats) -> tuple[Ints, Ints, Floats, Floats]:
    """The columns first, second, iou and ios of `Overlaps` for clipped boxes a, b that touch."""
    common = _areas(_intersect(a, b))
    touching = common > 0
    first, second, a, b = first[touching], second[touching], a[touching], b[touching]
    common, areas, others = common[touching], _areas(a), _areas(b)
    low, high = np.minimum(first, second), np.maximum(first, second)
    return low, high, common / (areas + others - common), common / np.minimum(areas, others)


def _intersect(a: Floats, b: Floats) -> Floats:
    """The (..., 4) intersection of boxes in pairs; inverted where there is none."""
    return np.concatenate((np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])), 1)


def _areas(boxes: Floats) -> Floats:
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    return sides[:, 0] * sides[:, 1]
