"""What kind of mistake each detection is, and what AP50 would gain without that kind.

The object that a false positive overlaps most decides (after TIDE, Bolya et al., ECCV 2020):

    class         at least half overlaps an object, of another class
    location      overlaps an object of its class by 0.1 to 0.5
    both          overlaps an object of another class by 0.1 to 0.5
    duplicate     at least half overlaps an object of its class that a better detection found
    background    overlaps nothing by 0.1
    missed        an object that nothing found, nor missed by class or location only

Letters: D detections, G objects, K categories.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2det.evaluation.matching import (
    FALSE_POSITIVE,
    IGNORED,
    TRUE_POSITIVE,
    count_objects,
    match_at,
    rank,
)
from d2det.evaluation.overlaps import Pairs, find_pairs
from d2det.evaluation.precision import NO_OBJECTS, coco_curves
from d2det.evaluation.tables import DetectionTable, GroundTruth, IouKind

ERROR_TYPES = ("class", "location", "both", "duplicate", "background", "missed")
_CLASS, _LOCATION, _BOTH, _DUPLICATE, _BACKGROUND, _MISSED = range(6)
NO_ERROR = -1

FOREGROUND_IOU = 0.5
BACKGROUND_IOU = 0.1


@dataclass(frozen=True)
class ErrorTypes:
    """Every mistake by kind.

    detections: the D detections that were considered.
    error: (D,) int64 index in ERROR_TYPES, NO_ERROR for right and ignored ones.
    object: (D,) int64, the object a detection found or overlaps most, or -1.
    missed: (M,) int64, objects nothing found.
    counts: (6, K) int64 mistakes by kind and class (of the object where it was missed).
    ap50: of the result as it is.
    gains: (6,) float64, what AP50 gains when only this kind is mended.
    """

    kind: IouKind
    detections: DetectionTable
    error: NDArray[np.int64]
    object: NDArray[np.int64]
    missed: NDArray[np.int64]
    counts: NDArray[np.int64]
    ap50: float
    gains: NDArray[np.float64]


def error_types(
    ground_truth: GroundTruth,
    detections: DetectionTable,
    *,
    kind: IouKind = "bbox",
    max_detections: int = 100,
) -> ErrorTypes:
    """Returns the kind of every mistake, and the AP50 each kind costs."""
    ranked, turns = rank(
        detections, num_classes=len(ground_truth.categories), kind=kind, cap=max_detections
    )
    own, other = (
        find_pairs(ranked, ground_truth, min_iou=BACKGROUND_IOU, kind=kind, partners=partners)
        for partners in ("same", "other")
    )
    status, found = match_at(own, ground_truth, turns=turns, iou=FOREGROUND_IOU)
    nearest, overlap, is_own = _nearest(own, other, len(ranked))
    error = np.select(
        [
            status != FALSE_POSITIVE,
            overlap < BACKGROUND_IOU,
            (overlap >= FOREGROUND_IOU) & ~is_own,
            overlap >= FOREGROUND_IOU,
            is_own,
        ],
        [NO_ERROR, _BACKGROUND, _CLASS, _DUPLICATE, _LOCATION],
        default=_BOTH,
    )
    is_found = np.zeros(len(ground_truth), bool)
    is_found[found[status == TRUE_POSITIVE]] = True
    almost = np.zeros(len(ground_truth), bool)
    almost[nearest[np.isin(error, (_CLASS, _LOCATION))]] = True
    missed = np.flatnonzero(~(is_found | almost | ground_truth.crowd))
    num_classes = len(ground_truth.categories)
    counts = np.zeros((len(ERROR_TYPES), num_classes), np.int64)
    wrong = error != NO_ERROR
    np.add.at(counts, (error[wrong], ranked.label[wrong]), 1)
    counts[_MISSED] = np.bincount(ground_truth.label[missed], minlength=num_classes)
    ap50, gains = _gains(ground_truth, ranked, status, error, nearest, is_found, missed, kind)
    nearest = np.where(status == FALSE_POSITIVE, nearest, found)
    return ErrorTypes(kind, ranked, error, nearest, missed, counts, ap50, gains)


def _nearest(
    own: Pairs, other: Pairs, num_detections: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """(D,) the most overlapped object (or -1), its overlap, whether it is of the own class."""
    own, other = own.select(~own.shared), other.select(~other.shared)
    pairs = own.joined(other)
    is_own = np.arange(len(pairs)) < len(own)
    order = np.lexsort((~is_own, -pairs.iou, pairs.detection))
    best = order[np.flatnonzero(np.diff(pairs.detection[order], prepend=-1))]
    rows = pairs.detection[best]
    nearest, overlap = np.full(num_detections, -1, np.int64), np.zeros(num_detections)
    same = np.zeros(num_detections, bool)
    nearest[rows], overlap[rows], same[rows] = pairs.object[best], pairs.iou[best], is_own[best]
    return nearest, overlap, same


def _gains(
    ground_truth: GroundTruth,
    ranked: DetectionTable,
    status: NDArray[np.int8],
    error: NDArray[np.int64],
    nearest: NDArray[np.int64],
    is_found: NDArray[np.bool_],
    missed: NDArray[np.int64],
    kind: IouKind,
) -> tuple[float, NDArray[np.float64]]:
    """AP50, and what it gains by mending each kind of error alone.

    A wrong class or place is mended to a hit if its object was still to be found and no better
    detection is mended to it; every other false positive is taken away, and so are missed objects.
    """
    objects = count_objects(ground_truth, ground_truth.crowd[:, None])
    scores = ranked.ranking(kind)

    def ap50(
        status: NDArray[np.int8], label: NDArray[np.int64], objects: NDArray[np.int64]
    ) -> float:
        curves = coco_curves(
            status[:, None, None],
            label=label,
            scores=scores,
            turns=np.zeros(len(label), np.int64),
            objects=objects,
            caps=(1,),
        )
        measured = curves.precision[curves.precision != NO_OBJECTS]
        return float(measured.mean()) if measured.size else NO_OBJECTS

    now = ap50(status, ranked.label, objects)
    gains = np.zeros(len(ERROR_TYPES))
    for fault in range(_MISSED):
        rows = np.flatnonzero(error == fault)
        mended, label = status.copy(), ranked.label.copy()
        mended[rows] = IGNORED
        if fault in (_CLASS, _LOCATION):
            open_ = rows[~is_found[nearest[rows]]]
            best_first = open_[np.argsort(-scores[open_], kind="stable")]
            hits = best_first[np.unique(nearest[best_first], return_index=True)[1]]
            mended[hits] = TRUE_POSITIVE
            label[hits] = ground_truth.label[nearest[hits]]
        gains[fault] = ap50(mended, label, objects) - now
    still = objects - np.bincount(ground_truth.label[missed], minlength=len(objects))[:, None]
    gains[_MISSED] = ap50(status, ranked.label, still) - now
    return now, gains
