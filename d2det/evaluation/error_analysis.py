"""Everything `d2det analyze` computes about one result, before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass

from d2det.evaluation.coco import CocoScores, evaluate_coco
from d2det.evaluation.confusion import ConfusionMatrix, confusion_matrix
from d2det.evaluation.error_curves import ErrorCurves, error_curves
from d2det.evaluation.error_types import ErrorTypes, error_types
from d2det.evaluation.score_analysis import ScoreAnalysis, analyze_scores
from d2det.evaluation.tables import DetectionTable, GroundTruth, IouKind

DEFAULT_MIN_SCORE = 0.5
"""Operating point where no threshold has a best F1: nothing found, or nothing to find."""


@dataclass(frozen=True)
class ErrorAnalysis:
    """One result seen from every side; `min_score` is the operating point of the confusions."""

    kind: IouKind
    min_score: float
    scores: CocoScores
    curves: ErrorCurves
    types: ErrorTypes
    confusion: ConfusionMatrix
    thresholds: ScoreAnalysis


def analyze_errors(
    ground_truth: GroundTruth,
    detections: DetectionTable,
    *,
    kind: IouKind = "bbox",
    max_detections: int = 100,
    min_score: float | None = None,
) -> ErrorAnalysis:
    """Returns scores, error curves, kinds of errors, confusions and thresholds of a result.

    Args:
        ground_truth: annotated objects.
        detections: in the same pictures.
        kind: overlap of boxes or of masks.
        max_detections: best detections per picture and class that are considered.
        min_score: of the confusion matrix; None for the threshold with the best F1.
    """
    cap = max_detections
    thresholds = analyze_scores(ground_truth, detections, kind=kind, max_detections=cap)
    if min_score is None:
        best = thresholds.best
        min_score = DEFAULT_MIN_SCORE if best is None else best.threshold
    metrics = evaluate_coco(ground_truth, detections, kinds=(kind,), max_detections=cap)
    return ErrorAnalysis(
        kind=kind,
        min_score=min_score,
        scores=metrics.scores[0],
        curves=error_curves(ground_truth, detections, kind=kind, max_detections=cap),
        types=error_types(ground_truth, detections, kind=kind, max_detections=cap),
        confusion=confusion_matrix(
            ground_truth, detections, min_score=min_score, kind=kind, max_detections=cap
        ),
        thresholds=thresholds,
    )
