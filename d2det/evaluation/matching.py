"""The COCO rule that pairs detections with objects, for many thresholds and sizes at once.

Detections choose in the order of their scores: the free object they overlap most among those that
count, else among those to be ignored. That is sequential within a picture and class, but not
across: turn n serves the n-th detection of every group together, so the Python loop is as long as
the fullest group, not as the data set.

Letters: D detections, G objects, P pairs, T overlap thresholds, A ranges of object area.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2det.evaluation.overlaps import Pairs
from d2det.evaluation.tables import DetectionTable, GroundTruth, IouKind

FALSE_POSITIVE, TRUE_POSITIVE, IGNORED = 0, 1, 2
"""What became of a detection."""

AREA_NAMES = ("all", "small", "medium", "large")
AREA_RANGES = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
"""COCO's object sizes in square pixels of the original picture, limits included."""

_EVERYTHING = 1 - 1e-10
"""Largest threshold in use: identical boxes must match at 1.0 too, whatever was rounded."""


@dataclass(frozen=True)
class Matches:
    """Outcome of matching.

    status: (D, T, A) int8, one of FALSE_POSITIVE, TRUE_POSITIVE, IGNORED.
    object: (D, T, A) int32, the matched object (counted or ignored), or -1.
    """

    status: NDArray[np.int8]
    object: NDArray[np.int32]


def match(
    pairs: Pairs,
    *,
    turns: NDArray[np.int64],
    thresholds: Sequence[float] | NDArray[np.float64],
    ignored: NDArray[np.bool_],
    out_of_range: NDArray[np.bool_],
    foreign: NDArray[np.bool_] | None = None,
) -> Matches:
    """Returns the outcome for D detections against G objects.

    Args:
        pairs: P pairs, all those with an overlap of at least the lowest threshold.
        turns: (D,) int64, when each detection chooses, within the group it competes in.
        thresholds: T least overlaps.
        ignored: (G, A) bool, objects that neither count nor, when matched, make a mistake.
        out_of_range: (D, A) bool, detections that are ignored when nothing matches them.
        foreign: (P,) bool, pairs that only excuse: the object is ignored for this detection,
            and stays free for others. Default: none.
    """
    num_detections, num_ranges = out_of_range.shape
    limits = np.minimum(np.asarray(thresholds, np.float64), _EVERYTHING)
    shape = (num_detections, len(limits), num_ranges)
    unmatched = np.where(out_of_range, IGNORED, FALSE_POSITIVE).astype(np.int8)
    status = np.repeat(unmatched[:, None], len(limits), axis=1)
    chosen = np.full(shape, -1, np.int32)
    taken = np.zeros((len(ignored), *shape[1:]), bool)
    foreign = np.zeros(len(pairs), bool) if foreign is None else foreign
    # Within a detection: best overlap first, and of equal ones the last object, as the reference.
    order = np.lexsort((-pairs.object, -pairs.iou, pairs.detection, turns[pairs.detection]))
    rounds = turns[pairs.detection[order]]
    for turn in np.split(order, np.flatnonzero(np.diff(rounds)) + 1) if len(pairs) else ():
        detection, object_ = pairs.detection[turn], pairs.object[turn]
        reusable = pairs.shared[turn] | foreign[turn]
        excused = ignored[object_] | foreign[turn, None]
        allowed = (pairs.iou[turn, None] >= limits)[:, :, None] & ~(
            taken[object_] & ~reusable[:, None, None]
        )
        winner, t, a = _preferred(detection, excused, allowed)
        picked = object_[winner]
        chosen[detection[winner], t, a] = picked
        status[detection[winner], t, a] = np.where(excused[winner, a], IGNORED, TRUE_POSITIVE)
        own = ~foreign[turn][winner]
        taken[picked[own], t[own], a[own]] = True
    return Matches(status, chosen)


def match_at(
    pairs: Pairs, ground_truth: GroundTruth, *, turns: NDArray[np.int64], iou: float
) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Returns the (D,) outcomes and matched objects (or -1) at one threshold, sizes disregarded."""
    matches = match(
        pairs.select(pairs.iou >= iou),
        turns=turns,
        thresholds=(iou,),
        ignored=ground_truth.crowd[:, None],
        out_of_range=np.zeros((len(turns), 1), bool),
    )
    return matches.status[:, 0, 0], matches.object[:, 0, 0].astype(np.int64)


def rank(
    detections: DetectionTable, *, num_classes: int, kind: IouKind, cap: int
) -> tuple[DetectionTable, NDArray[np.int64]]:
    """Returns the best `cap` detections of each picture and class, and the turn of each, (D',).

    They are ordered by picture, then class, then score.
    """
    group = detections.image * num_classes + detections.label
    order, turns = turns_by_score(group, detections.ranking(kind))
    order = order[turns[order] < cap]
    return detections.select(order), turns[order]


def count_objects(ground_truth: GroundTruth, ignored: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns the (K, A) objects of each class and size that count; `ignored` is (G, A)."""
    objects = np.zeros((len(ground_truth.categories), ignored.shape[1]), np.int64)
    np.add.at(objects, ground_truth.label, ~ignored)
    return objects


def turns_by_score(
    group: NDArray[np.int64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the order (D,) by group, then score, best first, and each row's place in its group.

    Equal scores keep the order in which they were given. The second result, (D,), belongs to the
    rows as given.
    """
    order = np.lexsort((-scores, group))
    sorted_group = group[order]
    starts = np.flatnonzero(np.diff(sorted_group, prepend=-1))
    place = np.arange(len(group)) - np.repeat(starts, np.diff(np.append(starts, len(group))))
    turns = np.empty(len(group), np.int64)
    turns[order] = place
    return order, turns


def outside(areas: NDArray[np.float64], ranges: Sequence[tuple[float, float]]) -> NDArray[np.bool_]:
    """Returns (n, A) bool, true where an area lies outside a range (limits belong to it)."""
    low, high = np.array(ranges, np.float64).reshape(-1, 2).T
    return (areas[:, None] < low) | (areas[:, None] > high)


def _preferred(
    detection: NDArray[np.int64], excused: NDArray[np.bool_], allowed: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Pair, threshold and size of every choice: the first allowed pair of a detection that counts,
    else the first excused one.

    Args:
        detection: (p,) of pairs that stand together by detection, best first.
        excused: (p, A) whether the pair's object does not count.
        allowed: (p, T, A) whether the overlap suffices and the object is free.
    """
    starts = np.flatnonzero(np.diff(detection, prepend=-1))
    count = len(detection)
    preference = np.arange(count)[:, None] + excused * count
    best = np.minimum.reduceat(np.where(allowed, preference[:, None], 2 * count), starts)
    d, t, a = np.nonzero(best < 2 * count)
    return best[d, t, a] % count, t, a
