"""PASCAL VOC average precision at any overlap, by the development kit's rule.

Each detection looks at the object of its class that it overlaps most, taken or not: the first (by
score) to claim an object with enough overlap is right, later ones are wrong, claims on difficult
objects are not counted. (COCO lets a later detection turn to the next free object.) Corners are
half-open here, so the kit's "+ 1" for inclusive pixels is already in width and height.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2det.evaluation.matching import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE, turns_by_score
from d2det.evaluation.overlaps import find_pairs
from d2det.evaluation.precision import precision_recall, voc_ap
from d2det.evaluation.tables import DetectionTable, GroundTruth
from d2det.structures import Category


@dataclass(frozen=True)
class VocClass:
    """One class's curve; `ap` is None for a class without objects that count.

    precision, recall: (D,) float64 after each counted detection, best score first.
    """

    category: Category
    num_objects: int
    num_detections: int
    ap: float | None
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


@dataclass(frozen=True)
class VocMetrics:
    """VOC average precision; `mean_ap` is over classes with objects, None where none has any."""

    iou: float
    eleven_points: bool
    mean_ap: float | None
    per_class: tuple[VocClass, ...]

    @property
    def name(self) -> str:
        """How the number is written, for example AP@0.70 or AP@0.50 (11 points)."""
        return f"AP@{self.iou:.2f}" + (" (11 points)" if self.eleven_points else "")


def evaluate_voc(
    ground_truth: GroundTruth,
    detections: DetectionTable,
    *,
    iou: float = 0.5,
    eleven_points: bool = False,
) -> VocMetrics:
    """Returns VOC's average precision of boxes.

    Args:
        ground_truth: `ignore` marks difficult objects. Crowd regions, which VOC does not know, are
            treated likewise, for detections that no other object explains.
        detections: in the same pictures; all of them are considered.
        iou: least overlap, which itself suffices.
        eleven_points: the average of VOC 2007 instead of the area under the curve (VOC 2010).

    Raises:
        ValueError: `iou` is not in (0, 1].
    """
    if not 0 < iou <= 1:
        raise ValueError(f"iou must lie in (0, 1], got {iou}")
    order, _ = turns_by_score(detections.label, detections.scores)
    ranked = detections.select(order)
    status = voc_status(ground_truth, ranked, iou=iou)
    counted = ~(ground_truth.ignore | ground_truth.crowd)
    bounds = np.searchsorted(ranked.label, np.arange(len(ground_truth.categories) + 1))
    classes = []
    for k, category in enumerate(ground_truth.categories):
        outcome = status[bounds[k] : bounds[k + 1]]
        total = int(np.count_nonzero(counted & (ground_truth.label == k)))
        hits, counts = outcome == TRUE_POSITIVE, outcome != IGNORED
        precision, recall = precision_recall(hits[counts], counts[counts], max(total, 1))
        ap = voc_ap(precision, recall, eleven_points=eleven_points) if total else None
        classes.append(VocClass(category, total, len(outcome), ap, precision, recall))
    measured = [one.ap for one in classes if one.ap is not None]
    mean = float(np.mean(measured)) if measured else None
    return VocMetrics(iou, eleven_points, mean, tuple(classes))


def voc_status(
    ground_truth: GroundTruth, ranked: DetectionTable, *, iou: float
) -> NDArray[np.int8]:
    """Returns the (D,) outcome of detections that are ordered by score within each class."""
    pairs = find_pairs(ranked, ground_truth, min_iou=iou)
    status = np.full(len(ranked), FALSE_POSITIVE, np.int8)
    # Per detection the best object first; crowd regions, measured more leniently, after all others.
    order = np.lexsort((pairs.object, -pairs.iou, pairs.shared, pairs.detection))
    claims = order[np.flatnonzero(np.diff(pairs.detection[order], prepend=-1))]
    detection, object_ = pairs.detection[claims], pairs.object[claims]
    first = np.zeros(len(claims), bool)
    first[np.unique(object_, return_index=True)[1]] = True
    excused = (ground_truth.ignore | ground_truth.crowd)[object_]
    status[detection[first]] = TRUE_POSITIVE
    status[detection[excused]] = IGNORED
    return status
