"""The D2Det paper's protocol on UAVDT: one class, VOC AP at IoU 0.7, ignore regions, attributes.

Rule for ignore regions: a box of which their union covers at least half is inside. Such detections
do not count, and such objects are not asked for, both taken out before matching; this is how the
toolkits of the drone benchmarks filter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2det.evaluation.tables import DetectionTable, GroundTruth
from d2det.evaluation.voc import VocMetrics, evaluate_voc

IGNORED_FRACTION = 0.5
"""Share of a box inside ignore regions from which on it does not count."""


@dataclass(frozen=True)
class AttributeScore:
    """AP over the pictures that have one attribute; None where they hold no object."""

    attribute: str
    num_images: int
    num_objects: int
    ap: float | None


@dataclass(frozen=True)
class UavdtMetrics:
    """AP of the merged class, overall and by picture attribute.

    num_ignored_detections, num_ignored_objects: taken out because they lie in ignore regions.
    """

    overall: VocMetrics
    num_ignored_detections: int
    num_ignored_objects: int
    per_attribute: tuple[AttributeScore, ...]

    @property
    def ap(self) -> float | None:
        """AP of the merged class; None without objects."""
        return self.overall.mean_ap


def evaluate_uavdt(
    ground_truth: GroundTruth,
    detections: DetectionTable,
    *,
    iou: float = 0.7,
    eleven_points: bool = False,
) -> UavdtMetrics:
    """Returns the AP of all categories merged to one class "vehicle".

    Args:
        ground_truth: annotations marked `ignore` or crowd are the ignore regions; `attributes` of
            the pictures (night, fog, high altitude ...) select those each further AP is over.
        detections: of any categories, in the same pictures.
        iou: least overlap.
        eleven_points: the average of VOC 2007 instead of the area under the curve.
    """
    is_region = ground_truth.ignore | ground_truth.crowd
    regions = ground_truth.of_objects(is_region)
    truth = ground_truth.of_objects(~is_region).merged("vehicle")
    found = detections.merged()
    inside = covered_fraction(found.boxes, found.image, regions) >= IGNORED_FRACTION
    excused = covered_fraction(truth.boxes, truth.image, regions) >= IGNORED_FRACTION
    truth, found = truth.of_objects(~excused), found.select(~inside)
    scores = []
    for attribute in sorted(set().union(*truth.attributes)):
        images = np.array([attribute in words for words in truth.attributes])
        part = truth.of_images(images)
        metrics = evaluate_voc(part, found.of_images(images), iou=iou, eleven_points=eleven_points)
        scores.append(AttributeScore(attribute, int(images.sum()), len(part), metrics.mean_ap))
    return UavdtMetrics(
        overall=evaluate_voc(truth, found, iou=iou, eleven_points=eleven_points),
        num_ignored_detections=int(inside.sum()),
        num_ignored_objects=int(excused.sum()),
        per_attribute=tuple(scores),
    )


def covered_fraction(
    boxes: NDArray[np.float64], image: NDArray[np.int64], regions: GroundTruth
) -> NDArray[np.float64]:
    """Returns the (B,) share of each box that the union of its picture's regions covers.

    Exact: the regions' edges cut the picture into a grid whose cells are covered wholly or not.

    Args:
        boxes: (B, 4) x, y, width, height.
        image: (B,) picture of each box.
        regions: the ignore regions of all pictures.
    """
    covered = np.zeros(len(boxes))
    for picture in np.unique(regions.image):
        rows = np.flatnonzero(image == picture)
        x, y, w, h = regions.boxes[regions.image == picture].T
        xs, ys = np.unique(np.concatenate((x, x + w))), np.unique(np.concatenate((y, y + h)))
        in_x = (xs[:-1] >= x[:, None]) & (xs[:-1] < (x + w)[:, None])
        in_y = (ys[:-1] >= y[:, None]) & (ys[:-1] < (y + h)[:, None])
        cells = (in_y[:, :, None] & in_x[:, None, :]).any(0).astype(np.float64)
        across = _overlap(boxes[rows, 0], boxes[rows, 2], xs)
        down = _overlap(boxes[rows, 1], boxes[rows, 3], ys)
        covered[rows] = np.einsum("by,yx,bx->b", down, cells, across, optimize=True)
    area = boxes[:, 2] * boxes[:, 3]
    covered[area > 0] /= area[area > 0]
    return covered


def _overlap(
    start: NDArray[np.float64], length: NDArray[np.float64], edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(B, E - 1) length that each interval shares with the spaces between E ascending edges."""
    low = np.maximum(start[:, None], edges[:-1])
    high = np.minimum((start + length)[:, None], edges[1:])
    length_shared: NDArray[np.float64] = np.maximum(high - low, 0)
    return length_shared
