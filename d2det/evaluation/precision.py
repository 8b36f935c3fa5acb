"""From outcomes to precision-recall curves and average precision, by each protocol's definition.

Letters: D detections, T overlap thresholds, R recall levels, K categories, A object sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2det.evaluation.matching import IGNORED, TRUE_POSITIVE

RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
"""COCO reads precision at these recalls. linspace, not arange: the last digits decide ties."""

NO_OBJECTS = -1.0
"""Stands for "nothing to measure", as in the COCO tools: a class or size without objects."""


@dataclass(frozen=True)
class Curves:
    """Interpolated precision of every class, and the recall that is reached.

    precision: (T, R, K, A) float64, NO_OBJECTS where a class has none.
    scores: (T, R, K, A) float64, score of the detection that reaches a recall level; 0 if none.
    recall: (T, K, A, M) float64 for M caps on the detections per picture and class, ascending.
    objects: (K, A) int64, objects that count.
    """

    precision: NDArray[np.float64]
    scores: NDArray[np.float64]
    recall: NDArray[np.float64]
    objects: NDArray[np.int64]


def coco_curves(
    status: NDArray[np.int8],
    *,
    label: NDArray[np.int64],
    scores: NDArray[np.float64],
    turns: NDArray[np.int64],
    objects: NDArray[np.int64],
    caps: tuple[int, ...],
) -> Curves:
    """Returns COCO's curves.

    Args:
        status: (D, T, A) outcomes of detections ordered by picture, class, score.
        label, scores, turns: (D,) of the same detections; `turns` is the place in its group.
        objects: (K, A) objects that count.
        caps: detections per picture and class that are considered; precision uses the last.
    """
    num_classes, num_ranges = objects.shape
    num_thresholds = status.shape[1]
    shape = (num_thresholds, len(RECALL_LEVELS), num_classes, num_ranges)
    precision, reached = np.full(shape, NO_OBJECTS), np.full(shape, NO_OBJECTS)
    recall = np.full((num_thresholds, num_classes, num_ranges, len(caps)), NO_OBJECTS)
    # Stable, so equal scores keep the order of pictures, as in the reference.
    order = np.lexsort((-scores, label))
    bounds = np.searchsorted(label[order], np.arange(num_classes + 1))
    for k in range(num_classes):
        rows = order[bounds[k] : bounds[k + 1]]
        counted = np.flatnonzero(objects[k])
        outcome = status[rows][:, :, counted].transpose(1, 2, 0)  # (T, A', n)
        total = objects[k, counted]
        hits = outcome == TRUE_POSITIVE
        for m, cap in enumerate(caps):
            found = np.count_nonzero(hits & (turns[rows] < cap), axis=2)
            recall[:, k, counted, m] = found / total
        for a, size in enumerate(counted):
            for t in range(num_thresholds):
                precision[t, :, k, size], reached[t, :, k, size] = _interpolated(
                    hits[t, a], outcome[t, a] != IGNORED, scores[rows], int(total[a])
                )
    return Curves(precision, reached, recall, objects)


def precision_recall(
    hit: NDArray[np.bool_], counts: NDArray[np.bool_], num_objects: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the (D,) precision and recall after each detection, best score first.

    Args:
        hit: (D,) bool, true positives.
        counts: (D,) bool, false for detections that are ignored.
        num_objects: objects that count, at least one.
    """
    found = np.cumsum(hit)
    made = np.cumsum(counts)
    # The reference's own guard against 0 / 0; it must be the same to give the same digits.
    return found / (made + np.spacing(1)), found / num_objects


def envelope(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the (D,) largest precision at each recall or beyond."""
    return np.maximum.accumulate(precision[::-1])[::-1]


def voc_ap(
    precision: NDArray[np.float64], recall: NDArray[np.float64], *, eleven_points: bool
) -> float:
    """Returns PASCAL VOC's average precision of one class.

    Args:
        precision, recall: (D,) as from `precision_recall`, where they count.
        eleven_points: mean of the precision at recall 0, 0.1 ... 1 (VOC 2007), instead of the area
            under the curve (VOC 2010 and later).
    """
    best = np.append(envelope(precision), 0.0)
    if eleven_points:
        levels = np.linspace(0, 1, 11)
        return float(best[np.searchsorted(recall, levels)].mean())
    return float(np.sum(np.diff(recall, prepend=0.0) * best[:-1]))


def _interpolated(
    hit: NDArray[np.bool_],
    counts: NDArray[np.bool_],
    scores: NDArray[np.float64],
    num_objects: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(R,) precision and score at every recall level; both 0 beyond the recall that is reached."""
    precision, recall = precision_recall(hit, counts, num_objects)
    at = np.searchsorted(recall, RECALL_LEVELS)
    return np.append(envelope(precision), 0.0)[at], np.append(scores, 0.0)[at]
