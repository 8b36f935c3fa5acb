"""Which detections overlap which objects, and by how much, without ever holding all pairs.

Letters: D detections, G objects, P pairs of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from d2det.evaluation.run_lengths import mask_areas, mask_boxes
from d2det.evaluation.tables import DetectionTable, GroundTruth, IouKind

Partners = Literal["same", "other"]
"""Whether a detection is compared with objects of its own class, or with those of all others."""

MAX_PAIRS = 1 << 20
"""Pairs looked at together. About 100 bytes each; larger blocks leave the cache and are slower."""


@dataclass(frozen=True)
class Pairs:
    """Detections and objects of one picture that overlap, ordered by detection.

    detection, object: (P,) int64 rows of their tables.
    iou: (P,) float64 intersection over union, or over the detection's area where `shared`.
    shared: (P,) bool, the object may be matched by any number of detections.
    """

    detection: NDArray[np.int64]
    object: NDArray[np.int64]
    iou: NDArray[np.float64]
    shared: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.detection)

    def select(self, rows: NDArray[np.bool_]) -> Pairs:
        """Returns the pairs where `rows`, (P,) bool, is true."""
        return Pairs(self.detection[rows], self.object[rows], self.iou[rows], self.shared[rows])

    def joined(self, other: Pairs) -> Pairs:
        """Returns the pairs of both."""
        return Pairs(
            np.concatenate((self.detection, other.detection)),
            np.concatenate((self.object, other.object)),
            np.concatenate((self.iou, other.iou)),
            np.concatenate((self.shared, other.shared)),
        )


def find_pairs(
    detections: DetectionTable,
    ground_truth: GroundTruth,
    *,
    min_iou: float,
    kind: IouKind = "bbox",
    partners: Partners = "same",
    shared: NDArray[np.bool_] | None = None,
) -> Pairs:
    """Returns every pair of a picture whose overlap is at least `min_iou`.

    Args:
        detections: D rows.
        ground_truth: G objects of the same pictures.
        min_iou: pairs below it are left out, so it must not exceed any threshold used later.
        kind: overlap of boxes or of masks.
        partners: compare with objects of the detection's class, or of every other class.
        shared: (G,) bool, objects whose overlap is measured over the detection's area alone, as
            for a region that holds many objects; default: the crowd regions.
    """
    shared = ground_truth.crowd if shared is None else shared
    regions = (_box_regions if kind == "bbox" else _mask_regions)(
        detections, ground_truth, partners
    )
    blocks = []
    keys = _keys(detections, ground_truth, partners)
    for detection, object_ in _candidates(keys, regions) if len(ground_truth) else ():
        if partners == "other":
            differ = detections.label[detection] != ground_truth.label[object_]
            detection, object_ = detection[differ], object_[differ]
        bound = regions.largest_iou(detection, object_, shared)
        keep = bound >= min_iou
        blocks.append((detection[keep], object_[keep], bound[keep]))
    detection, object_, iou = (
        np.concatenate([np.zeros(0, dtype), *(block[n] for block in blocks)])
        for n, dtype in enumerate((np.int64, np.int64, np.float64))
    )
    pairs = Pairs(detection, object_, iou, shared[object_])
    if kind == "segm":
        pairs = _with_mask_iou(pairs, detections, ground_truth)
        pairs = pairs.select(pairs.iou >= min_iou)
    return pairs


def _candidates(
    keys: tuple[NDArray[np.int64], NDArray[np.int64]], regions: _Regions
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Blocks of (detection, object) rows with equal keys that may overlap from left to right.

    Objects lie on one line, group after group, each at its left edge; what a detection can overlap
    is an interval of it, found by bisection. So a scene of 100 000 objects is no matter of all
    pairs.
    """
    detection_keys, object_keys = keys
    groups, group = np.unique(object_keys, return_inverse=True)
    own = np.searchsorted(groups, detection_keys)
    rows = np.flatnonzero(groups[np.minimum(own, len(groups) - 1)] == detection_keys)
    own = own[rows]
    widest = np.zeros(len(groups))
    np.maximum.at(widest, group, regions.object_boxes[:, 2])
    limit = float(regions.object_boxes[:, 0].max()) + 1
    spacing = 2 * limit + 2  # more than the slack below and the rounding of large numbers

    def on_line(group: NDArray[np.int64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(group * spacing + np.clip(x, 0, limit), np.float64)

    places = on_line(group, regions.object_boxes[:, 0])
    by_place = np.argsort(places)
    left, right = regions.boxes[rows, 0], regions.boxes[rows, 0] + regions.boxes[rows, 2]
    slack = 0.01
    first = np.searchsorted(places[by_place], on_line(own, left - widest[own]) - slack)
    count = np.searchsorted(places[by_place], on_line(own, right) + slack) - first
    ends = np.cumsum(count)
    low = 0
    while low < len(rows):
        done = ends[low - 1] if low else 0
        high = max(low + 1, int(np.searchsorted(ends, done + MAX_PAIRS, "right")))
        sizes = count[low:high]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        yield np.repeat(rows[low:high], sizes), by_place[np.repeat(first[low:high], sizes) + within]
        low = high


def _keys(
    detections: DetectionTable, ground_truth: GroundTruth, partners: Partners
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(D,) and (G,) numbers that are equal where a detection is compared with an object."""
    if partners == "other":
        return detections.image, ground_truth.image
    classes = len(ground_truth.categories)
    return (
        detections.image * classes + detections.label,
        ground_truth.image * classes + ground_truth.label,
    )


@dataclass(frozen=True)
class _Regions:
    """Boxes (x, y, w, h) and areas of D detections and G objects, as boxes or around masks."""

    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    object_boxes: NDArray[np.float64]
    object_areas: NDArray[np.float64]
    is_bound: bool = False

    def largest_iou(
        self,
        detection: NDArray[np.int64],
        object_: NDArray[np.int64],
        shared: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """(P,) IoU of boxes, or a bound that the IoU of masks in these boxes cannot pass.

        The steps are those of the reference (corner = origin + size, then differences), so that
        boxes give its very floating-point numbers. No intersection exceeds that of the boxes, or
        either area; division rounds monotonically, so the bound holds in floating point too.
        """
        boxes, others = self.boxes[detection].T, self.object_boxes[object_].T
        sides = [
            np.minimum(boxes[i + 2] + boxes[i], others[i + 2] + others[i])
            - np.maximum(boxes[i], others[i])
            for i in (0, 1)
        ]
        overlap = sides[0] * sides[1]
        area, other_area = self.areas[detection], self.object_areas[object_]
        if self.is_bound:
            overlap = np.minimum(overlap, np.minimum(area, other_area))
        union = np.where(shared[object_], area, area + other_area - overlap)
        touching = (sides[0] > 0) & (sides[1] > 0)
        iou = np.zeros(len(overlap))
        np.divide(overlap, union, out=iou, where=touching & (union > 0))
        return iou


def _box_regions(
    detections: DetectionTable, ground_truth: GroundTruth, partners: Partners
) -> _Regions:
    boxes, others = detections.boxes, ground_truth.boxes
    return _Regions(boxes, boxes[:, 2] * boxes[:, 3], others, others[:, 2] * others[:, 3])


def _mask_regions(
    detections: DetectionTable, ground_truth: GroundTruth, partners: Partners
) -> _Regions:
    masks, others = detections.required_masks(), ground_truth.masks
    # Most detections of a real result have no object to be compared with: spare their masks.
    detection_keys, object_keys = _keys(detections, ground_truth, partners)
    needed = np.flatnonzero(np.isin(detection_keys, object_keys))
    boxes = np.zeros((len(detections), 4))
    boxes[needed] = mask_boxes([masks[i] for i in needed])
    return _Regions(
        boxes, detections.areas("segm"), mask_boxes(others), mask_areas(others), is_bound=True
    )


def _with_mask_iou(pairs: Pairs, detections: DetectionTable, ground_truth: GroundTruth) -> Pairs:
    """The same pairs with the exact overlap of their masks, a call per picture and class."""
    masks, others = detections.required_masks(), ground_truth.masks
    group = detections.image[pairs.detection] * (len(ground_truth.categories) + 1)
    group += detections.label[pairs.detection]
    order = np.argsort(group, kind="stable")
    cuts = np.flatnonzero(np.diff(group[order])) + 1
    iou = np.zeros(len(pairs))
    for rows in np.split(order, cuts) if len(pairs) else ():
        own, own_at = np.unique(pairs.detection[rows], return_inverse=True)
        other, other_at = np.unique(pairs.object[rows], return_inverse=True)
        crowd = np.zeros(len(other), bool)
        crowd[other_at] = pairs.shared[rows]
        table = coco_mask.iou(
            [masks[i] for i in own], [others[i] for i in other], crowd.astype(np.uint8)
        )
        iou[rows] = table[own_at, other_at]
    return Pairs(pairs.detection, pairs.object, iou, pairs.shared)
