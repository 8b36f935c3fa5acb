"""COCO average precision of boxes and masks.

Two engines give the same numbers to 1e-9: "fast", vectorised over the whole data set, and
"pycocotools", the reference, against which tests and `benchmarks/evaluation.py` hold the first.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from d2det.evaluation.matching import AREA_RANGES, count_objects, match, outside, rank
from d2det.evaluation.overlaps import find_pairs
from d2det.evaluation.precision import NO_OBJECTS, RECALL_LEVELS, Curves, coco_curves
from d2det.evaluation.tables import DetectionTable, GroundTruth, IouKind
from d2det.structures import Category

Engine = Literal["fast", "pycocotools"]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""AP averages over these; linspace gives the reference's very digits."""


@dataclass(frozen=True)
class ClassMetrics:
    """One class's share: objects and detections that count, and its average precisions."""

    category: Category
    num_objects: int
    num_detections: int
    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar: float


@dataclass(frozen=True)
class CocoScores:
    """COCO's numbers for one kind of overlap; NO_OBJECTS (-1) where there is nothing to measure.

    summary: the 12 numbers by their usual short names, AP AP50 AP75 APs APm APl AR1 AR10 AR100
        ARs ARm ARl, in this order; with another cap the name is, for example, AR500.
    per_class: one entry a category.
    curves: precision at every threshold, recall level, class and object size.
    """

    kind: IouKind
    max_detections: int
    summary: dict[str, float]
    per_class: tuple[ClassMetrics, ...]
    curves: Curves


@dataclass(frozen=True)
class CocoMetrics:
    """The scores of boxes, and of masks where they were evaluated."""

    scores: tuple[CocoScores, ...]

    def __getitem__(self, name: str) -> float:
        """Returns one number, for example `metrics["bbox/AP"]`."""
        values = self.as_dict()
        if name not in values:
            raise KeyError(f"{name!r} is not among {', '.join(values)}")
        return values[name]

    def as_dict(self) -> dict[str, float]:
        """Returns all numbers by names such as bbox/AP, bbox/AP50, segm/AP."""
        return {
            f"{one.kind}/{name}": value
            for one in self.scores
            for name, value in one.summary.items()
        }


def evaluate_coco(
    ground_truth: GroundTruth,
    detections: DetectionTable,
    *,
    kinds: Sequence[IouKind] = ("bbox",),
    max_detections: int = 100,
    engine: Engine = "fast",
) -> CocoMetrics:
    """Returns COCO's box and mask average precision.

    Args:
        ground_truth: annotated objects; crowd regions excuse what lies in them, and `ignore` is not
            looked at, as in the reference.
        detections: in the same pictures, in the frame of the original.
        kinds: "bbox", "segm" or both. Masks are ranked by their mask score, and their size is
            counted in mask pixels.
        max_detections: best detections per picture and class that are considered: 100 on COCO;
            aerial pictures with hundreds of objects need more, for example 500.
        engine: "fast", or "pycocotools" to compare with.

    Raises:
        ValueError: masks are asked for where there are none.
    """
    if max_detections < 1:
        raise ValueError(f"max_detections must be at least 1, got {max_detections}")
    curves = _fast_curves if engine == "fast" else _reference_curves
    return CocoMetrics(
        tuple(
            _scores(
                curves(ground_truth, detections, kind, max_detections),
                ground_truth,
                detections,
                kind,
                max_detections,
            )
            for kind in kinds
        )
    )


def coco_metrics_table(scores: CocoScores) -> list[tuple[str, ...]]:
    """Returns the per-class table as rows of text, header first, classes by descending AP."""
    rows: list[tuple[str, ...]] = [
        ("class", "objects", "detections", "AP", "AP50", "AP75", "APs", "APm", "APl", "AR")
    ]
    for row in sorted(scores.per_class, key=lambda row: -row.ap):
        values = (row.ap, row.ap50, row.ap75, row.ap_small, row.ap_medium, row.ap_large, row.ar)
        numbers = (percent(value) for value in values)
        rows.append(
            (row.category.name, f"{row.num_objects:,}", f"{row.num_detections:,}", *numbers)
        )
    return rows


def percent(value: float) -> str:
    """Returns a score in points, "-" where there was nothing to measure."""
    return "-" if value == NO_OBJECTS else f"{100 * value:.1f}"


def _fast_curves(
    ground_truth: GroundTruth, detections: DetectionTable, kind: IouKind, cap: int
) -> Curves:
    ranked, turns = rank(detections, num_classes=len(ground_truth.categories), kind=kind, cap=cap)
    ignored = ground_truth.crowd[:, None] | outside(ground_truth.areas, AREA_RANGES)
    matches = match(
        find_pairs(ranked, ground_truth, min_iou=IOU_THRESHOLDS[0], kind=kind),
        turns=turns,
        thresholds=IOU_THRESHOLDS,
        ignored=ignored,
        out_of_range=outside(ranked.areas(kind), AREA_RANGES),
    )
    return coco_curves(
        matches.status,
        label=ranked.label,
        scores=ranked.ranking(kind),
        turns=turns,
        objects=count_objects(ground_truth, ignored),
        caps=(1, 10, cap),
    )


def _scores(
    curves: Curves,
    ground_truth: GroundTruth,
    detections: DetectionTable,
    kind: IouKind,
    cap: int,
) -> CocoScores:
    precision, recall = curves.precision, curves.recall
    summary = {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[0, ..., 0]),
        "AP75": _mean(precision[5, ..., 0]),
        **{f"AP{'sml'[a]}": _mean(precision[..., a + 1]) for a in range(3)},
        "AR1": _mean(recall[..., 0, 0]),
        "AR10": _mean(recall[..., 0, 1]),
        f"AR{cap}": _mean(recall[..., 0, 2]),
        **{f"AR{'sml'[a]}": _mean(recall[..., a + 1, 2]) for a in range(3)},
    }
    found = np.bincount(detections.label, minlength=len(ground_truth.categories))
    per_class = tuple(
        ClassMetrics(
            category=category,
            num_objects=int(curves.objects[k, 0]),
            num_detections=int(found[k]),
            ap=_mean(precision[:, :, k, 0]),
            ap50=_mean(precision[0, :, k, 0]),
            ap75=_mean(precision[5, :, k, 0]),
            ap_small=_mean(precision[:, :, k, 1]),
            ap_medium=_mean(precision[:, :, k, 2]),
            ap_large=_mean(precision[:, :, k, 3]),
            ar=_mean(recall[:, k, 0, 2]),
        )
        for k, category in enumerate(ground_truth.categories)
    )
    return CocoScores(kind, cap, summary, per_class, curves)


def _mean(values: NDArray[np.float64]) -> float:
    measured = values[values != NO_OBJECTS]
    return float(measured.mean()) if measured.size else NO_OBJECTS


def _reference_curves(
    ground_truth: GroundTruth, detections: DetectionTable, kind: IouKind, cap: int
) -> Curves:
    """The same curves by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth, results = COCO(), COCO()
        truth.dataset = _reference_truth(ground_truth, kind)
        results.dataset = {**truth.dataset, "annotations": _reference_rows(detections, kind)}
        truth.createIndex()
        results.createIndex()
        run = COCOeval(truth, results, kind)
        run.params.maxDets = [1, min(10, cap), cap]
        run.evaluate()
        run.accumulate()
    ignored = ground_truth.crowd[:, None] | outside(ground_truth.areas, AREA_RANGES)
    assert np.array_equal(run.params.recThrs, RECALL_LEVELS)
    return Curves(
        precision=run.eval["precision"][..., -1],
        scores=run.eval["scores"][..., -1],
        recall=run.eval["recall"],
        objects=count_objects(ground_truth, ignored),
    )


def _reference_truth(ground_truth: GroundTruth, kind: IouKind) -> dict[str, Any]:
    """Positions serve as ids, from 1: the reference takes an object with id 0 for no match."""
    masks = ground_truth.masks if kind == "segm" else ()
    return {
        "images": [
            {"id": n, "height": int(h), "width": int(w)}
            for n, (h, w) in enumerate(ground_truth.sizes)
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(ground_truth.names)],
        "annotations": [
            {
                "id": n + 1,
                "image_id": int(ground_truth.image[n]),
                "category_id": int(ground_truth.label[n]),
                "bbox": ground_truth.boxes[n].tolist(),
                "area": float(ground_truth.areas[n]),
                "iscrowd": int(ground_truth.crowd[n]),
                **({"segmentation": masks[n]} if masks else {}),
            }
            for n in range(len(ground_truth))
        ],
    }


def _reference_rows(detections: DetectionTable, kind: IouKind) -> list[dict[str, Any]]:
    areas, scores = detections.areas(kind), detections.ranking(kind)
    masks = detections.required_masks() if kind == "segm" else ()
    return [
        {
            "id": n + 1,
            "image_id": int(detections.image[n]),
            "category_id": int(detections.label[n]),
            "bbox": detections.boxes[n].tolist(),
            "area": float(areas[n]),
            "score": float(scores[n]),
            "iscrowd": 0,
            **({"segmentation": masks[n]} if masks else {}),
        }
        for n in range(len(detections))
    ]
