"""Which classes are taken for which, and for nothing.

Letters: D detections, G objects, K categories.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2det.evaluation.matching import FALSE_POSITIVE, TRUE_POSITIVE, match_at, rank, turns_by_score
from d2det.evaluation.overlaps import find_pairs
from d2det.evaluation.tables import DetectionTable, GroundTruth, IouKind
from d2det.structures import Category


@dataclass(frozen=True)
class ConfusionMatrix:
    """Objects by true class (rows) and detected class (columns); the last of each is background.

    matrix: (K + 1, K + 1) int64. The last row holds detections where no object is, the last column
    objects that were not found. Detections in crowd regions are left out.
    """

    categories: tuple[Category, ...]
    iou: float
    min_score: float
    matrix: NDArray[np.int64]

    def top_confusions(self, count: int = 10) -> list[tuple[str, str, int]]:
        """Returns (true class, detected class, number) of the most frequent class confusions."""
        classes = len(self.categories)
        off = self.matrix[:classes, :classes].copy()
        np.fill_diagonal(off, 0)
        order = np.argsort(-off, axis=None, kind="stable")[:count]
        names = [category.name for category in self.categories]
        return [
            (names[i // classes], names[i % classes], int(off.flat[i]))
            for i in order
            if off.flat[i] > 0
        ]


def confusion_matrix(
    ground_truth: GroundTruth,
    detections: DetectionTable,
    *,
    min_score: float,
    iou: float = 0.5,
    kind: IouKind = "bbox",
    max_detections: int = 100,
) -> ConfusionMatrix:
    """Returns how true and detected classes meet.

    First every class is matched on its own by COCO's rule, so the diagonal holds its true
    positives. Detections left over then choose, best score first, among objects left over, of
    whatever class.

    Args:
        ground_truth: annotated objects.
        detections: in the same pictures.
        min_score: detections below it are left out: a matrix belongs to one operating point.
        iou: least overlap.
        kind: overlap of boxes or of masks.
        max_detections: best detections per picture and class that are considered.
    """
    classes = len(ground_truth.categories)
    confident = detections.select(detections.ranking(kind) >= min_score)
    ranked, turns = rank(confident, num_classes=classes, kind=kind, cap=max_detections)
    own = find_pairs(ranked, ground_truth, min_iou=iou, kind=kind)
    status, found = match_at(own, ground_truth, turns=turns, iou=iou)
    hits = status == TRUE_POSITIVE
    is_open = ~ground_truth.crowd
    is_open[found[hits]] = False
    others = find_pairs(ranked, ground_truth, min_iou=iou, kind=kind, partners="other")
    others = others.select((status == FALSE_POSITIVE)[others.detection] & is_open[others.object])
    image_turns = turns_by_score(ranked.image, ranked.ranking(kind))[1]
    confused = match_at(others, ground_truth, turns=image_turns, iou=iou)[1]
    is_confused = confused >= 0
    is_open[confused[is_confused]] = False
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    np.add.at(matrix, (ranked.label[hits], ranked.label[hits]), 1)
    true = ground_truth.label[confused[is_confused]]
    np.add.at(matrix, (true, ranked.label[is_confused]), 1)
    nothing = (status == FALSE_POSITIVE) & ~is_confused
    matrix[classes, :classes] = np.bincount(ranked.label[nothing], minlength=classes)
    matrix[:classes, classes] = np.bincount(ground_truth.label[is_open], minlength=classes)
    return ConfusionMatrix(ground_truth.categories, iou, min_score, matrix)
