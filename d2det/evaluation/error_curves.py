"""The error curves of the paper's Fig. 5 (COCO's error analysis, Hoiem et al., ECCV 2012).

Seven precision-recall curves, each forgiving more than the one before; the area between two is
what one kind of error costs:

    C75  IoU 0.75.
    C50  IoU 0.5: a good but not a precise place suffices.
    Loc  IoU 0.1: errors of place are forgiven, second detections of an object are not.
    Sim  detections on objects of another class of the same supercategory are not counted.
    Oth  detections on objects of any other class are not counted.
    BG   no false positive is left: precision 1 up to the recall that is reached.
    FN   no missed object is left either: 1 everywhere.

Letters: R recall levels, K categories, A object sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2det.evaluation.matching import (
    AREA_NAMES,
    AREA_RANGES,
    count_objects,
    match,
    outside,
    rank,
)
from d2det.evaluation.overlaps import Pairs, find_pairs
from d2det.evaluation.precision import NO_OBJECTS, coco_curves
from d2det.evaluation.tables import DetectionTable, GroundTruth, IouKind
from d2det.structures import Category

STAGES = ("C75", "C50", "Loc", "Sim", "Oth", "BG", "FN")

LOOSE_IOU = 0.1
"""Overlap that still relates a detection to an object (COCO's analysis)."""


@dataclass(frozen=True)
class ErrorCurves:
    """Precision of every class after each stage of forgiveness.

    precision: (7, R, K, A) float64, NO_OBJECTS where a class has no object of that size.
    """

    kind: IouKind
    categories: tuple[Category, ...]
    precision: NDArray[np.float64]

    def mean(self, area: str = "all") -> NDArray[np.float64] | None:
        """Returns the (7, R) mean over the classes with objects of that size; None without any."""
        curves = self.precision[..., AREA_NAMES.index(area)]
        present = (curves[0] != NO_OBJECTS).all(0)
        return curves[:, :, present].mean(2) if present.any() else None

    def of_class(self, label: int, area: str = "all") -> NDArray[np.float64] | None:
        """Returns the (7, R) curves of one class; None if it has no object of that size."""
        curves = self.precision[:, :, label, AREA_NAMES.index(area)]
        return None if (curves == NO_OBJECTS).any() else curves


def error_curves(
    ground_truth: GroundTruth,
    detections: DetectionTable,
    *,
    kind: IouKind = "bbox",
    max_detections: int = 100,
) -> ErrorCurves:
    """Returns the seven curves of every class and object size.

    Objects of other classes serve as regions that excuse any number of detections lying in them by
    a tenth of the detection's area, as in the analysis scripts of the field.
    """
    ranked, turns = rank(
        detections, num_classes=len(ground_truth.categories), kind=kind, cap=max_detections
    )
    own = find_pairs(ranked, ground_truth, min_iou=LOOSE_IOU, kind=kind)
    every_object = np.ones(len(ground_truth), bool)
    other = find_pairs(
        ranked, ground_truth, min_iou=LOOSE_IOU, kind=kind, partners="other", shared=every_object
    )
    groups = np.unique(np.array(ground_truth.supercategories, object), return_inverse=True)[1]
    similar = groups[ranked.label[other.detection]] == groups[ground_truth.label[other.object]]
    stages = []
    for excuses, thresholds in (
        (other.select(np.zeros(len(other), bool)), (0.75, 0.5, LOOSE_IOU)),
        (other.select(similar), (LOOSE_IOU,)),
        (other, (LOOSE_IOU,)),
    ):
        stages.append(_precision(ground_truth, ranked, turns, kind, own, excuses, thresholds))
    absent = stages[-1] == NO_OBJECTS
    stages.append(np.where(absent, NO_OBJECTS, stages[-1] > 0))
    stages.append(np.where(absent, NO_OBJECTS, 1.0))
    return ErrorCurves(kind, ground_truth.categories, np.concatenate(stages))


def _precision(
    ground_truth: GroundTruth,
    ranked: DetectionTable,
    turns: NDArray[np.int64],
    kind: IouKind,
    own: Pairs,
    excuses: Pairs,
    thresholds: tuple[float, ...],
) -> NDArray[np.float64]:
    """(T, R, K, A) precision when matches with objects of other classes do not count."""
    ignored = ground_truth.crowd[:, None] | outside(ground_truth.areas, AREA_RANGES)
    matches = match(
        own.joined(excuses),
        turns=turns,
        thresholds=thresholds,
        ignored=ignored,
        out_of_range=outside(ranked.areas(kind), AREA_RANGES),
        foreign=np.arange(len(own) + len(excuses)) >= len(own),
    )
    return coco_curves(
        matches.status,
        label=ranked.label,
        scores=ranked.ranking(kind),
        turns=turns,
        objects=count_objects(ground_truth, ignored),
        caps=(1,),
    ).precision
