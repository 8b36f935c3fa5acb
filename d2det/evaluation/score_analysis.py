"""What scores mean: how often a detection of some score is right, and which threshold to choose.

Letters: D detections, S thresholds, B bins of score, K categories.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2det.evaluation.matching import IGNORED, TRUE_POSITIVE, count_objects, match_at, rank
from d2det.evaluation.overlaps import find_pairs
from d2det.evaluation.tables import DetectionTable, GroundTruth, IouKind

THRESHOLDS = np.linspace(0, 1, 201)
"""Where curves over the score are drawn."""


@dataclass(frozen=True)
class OperatingPoint:
    """What a score threshold gives."""

    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Calibration:
    """Score against frequency of being right, in bins of equal width.

    mean_score, precision: (B,) float64, NaN for an empty bin.  counts: (B,) int64.
    error: expected calibration error, the mean distance of the two over all detections.
    """

    mean_score: NDArray[np.float64]
    precision: NDArray[np.float64]
    counts: NDArray[np.int64]
    error: float


@dataclass(frozen=True)
class ScoreAnalysis:
    """Precision, recall and F1 over the score threshold, all classes pooled, and the best points.

    curves: (3, S) float64 precision, recall, F1 at THRESHOLDS; precision is 1 where nothing is
        left.
    best: the pooled threshold of the largest F1; None where there is no object or no detection.
    best_of_class: K such points, each by its own class.
    """

    iou: float
    curves: NDArray[np.float64]
    best: OperatingPoint | None
    best_of_class: tuple[OperatingPoint | None, ...]
    calibration: Calibration


def analyze_scores(
    ground_truth: GroundTruth,
    detections: DetectionTable,
    *,
    iou: float = 0.5,
    kind: IouKind = "bbox",
    max_detections: int = 100,
    bins: int = 10,
) -> ScoreAnalysis:
    """Returns what the scores of a result mean at one overlap threshold.

    Args:
        ground_truth: annotated objects; crowd regions excuse what lies in them.
        detections: in the same pictures.
        iou: overlap from which on a detection is right.
        kind: overlap of boxes or of masks.
        max_detections: best detections per picture and class that are considered.
        bins: of score, for the calibration.
    """
    classes = len(ground_truth.categories)
    ranked, turns = rank(detections, num_classes=classes, kind=kind, cap=max_detections)
    pairs = find_pairs(ranked, ground_truth, min_iou=iou, kind=kind)
    status, _ = match_at(pairs, ground_truth, turns=turns, iou=iou)
    counted = status != IGNORED
    hit, label = (status == TRUE_POSITIVE)[counted], ranked.label[counted]
    scores = ranked.ranking(kind)[counted]
    objects = count_objects(ground_truth, ground_truth.crowd[:, None])[:, 0]
    return ScoreAnalysis(
        iou=iou,
        curves=_curves(hit, scores, int(objects.sum())),
        best=_best_point(hit, scores, int(objects.sum())),
        best_of_class=tuple(
            _best_point(hit[label == k], scores[label == k], int(objects[k]))
            for k in range(classes)
        ),
        calibration=_calibration(hit, scores, bins),
    )


def _curves(
    hit: NDArray[np.bool_], scores: NDArray[np.float64], num_objects: int
) -> NDArray[np.float64]:
    order = np.argsort(scores, kind="stable")
    left = len(scores) - np.searchsorted(scores[order], THRESHOLDS)
    hits = np.append(0, np.cumsum(hit[order][::-1]))[left]
    precision = np.where(left > 0, hits / np.maximum(left, 1), 1.0)
    recall = hits / max(num_objects, 1)
    f1 = 2 * hits / np.maximum(left + num_objects, 1)
    return np.stack((precision, recall, f1))


def _best_point(
    hit: NDArray[np.bool_], scores: NDArray[np.float64], num_objects: int
) -> OperatingPoint | None:
    """The point of largest F1 among all thresholds that make a difference."""
    if not num_objects or not len(scores):
        return None
    order = np.argsort(-scores, kind="stable")
    hits, kept = np.cumsum(hit[order]), np.arange(1, len(scores) + 1)
    f1 = 2 * hits / (kept + num_objects)
    # A threshold keeps all detections of equal score or none.
    f1[:-1][scores[order][:-1] == scores[order][1:]] = -1
    best = int(np.argmax(f1))
    return OperatingPoint(
        threshold=float(scores[order][best]),
        precision=float(hits[best] / kept[best]),
        recall=float(hits[best] / num_objects),
        f1=float(f1[best]),
    )


def _calibration(hit: NDArray[np.bool_], scores: NDArray[np.float64], bins: int) -> Calibration:
    # Mask scores may pass 1 by design; they belong to the last bin.
    place = np.clip((scores * bins).astype(np.int64), 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_score = np.bincount(place, scores, bins) / counts
        precision = np.bincount(place, hit, bins) / counts
    gaps = np.abs(mean_score - precision)[counts > 0]
    error = float((gaps * counts[counts > 0]).sum() / max(counts.sum(), 1))
    return Calibration(mean_score, precision, counts, error)
