"""Ground truth and detections as columns: the form on which every metric here computes.

Letters: I pictures, K categories, G objects of the ground truth, D detections.
Boxes are (x, y, width, height) float64, the stored form of COCO files, in pixels of the original
picture: the reference evaluators define their overlaps on it, and only the same arithmetic gives
the same decision where an overlap lies exactly on a threshold. Half-open, like all boxes here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from d2det.data.index import DatasetIndex
from d2det.evaluation.run_lengths import mask_areas, read_masks
from d2det.structures import Category, Rle

IouKind = Literal["bbox", "segm"]
"""What overlaps are measured on: boxes or masks."""


@dataclass(frozen=True)
class GroundTruth:
    """Annotated objects of a data set.

    image_ids: (I,) int64, ascending.  file_names: I names.  sizes: (I, 2) int64 (height, width).
    attributes: I sets of words that describe a picture ("night", "fog"), often empty.
    categories: K classes.  supercategories: K names of the groups they belong to.
    image: (G,) int64 index in `image_ids`.  label: (G,) int64 index in `categories`.
    boxes: (G, 4) float64.  areas: (G,) float64, of the mask where there is one.
    crowd: (G,) bool, a region of many objects that any number of detections may hit unpunished.
    ignore: (G,) bool, marked difficult or to be ignored; each protocol says what it makes of it.
    segmentations: G polygons or run lengths as stored (None: a box only).
    """

    image_ids: NDArray[np.int64]
    file_names: tuple[str, ...]
    sizes: NDArray[np.int64]
    attributes: tuple[frozenset[str], ...]
    categories: tuple[Category, ...]
    supercategories: tuple[str, ...]
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    ignore: NDArray[np.bool_]
    segmentations: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def from_index(cls, index: DatasetIndex) -> GroundTruth:
        """Returns the ground truth of a data set read by `d2det.data`, whatever its own format.

        Ignored objects (crowds, ignore regions) become crowd regions, and sizes are those of masks,
        or of boxes without. COCO files state sizes of their own: `read_ground_truth` keeps them.
        """
        by_id = np.argsort(index.image_ids)
        place = np.empty(len(by_id), np.int64)
        place[by_id] = np.arange(len(by_id))
        image = np.repeat(place, np.diff(index.starts))
        sizes = index.image_sizes[by_id]
        corners = index.boxes.astype(np.float64)
        boxes = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1)
        strings = [b"" if index.masks is None else index.masks[n] for n in range(len(boxes))]
        segmentations = tuple(
            {"size": sizes[i].tolist(), "counts": text} if text else None
            for i, text in zip(image, strings, strict=True)
        )
        if all(strings):
            areas = mask_areas(read_masks(segmentations, sizes[image].tolist(), what="object"))
        else:
            areas = boxes[:, 2] * boxes[:, 3]
        words = index.attributes or (frozenset(),) * len(by_id)
        return cls(
            image_ids=index.image_ids[by_id],
            file_names=tuple(index.file_names[i] for i in by_id),
            sizes=sizes,
            attributes=tuple(words[i] for i in by_id),
            categories=index.categories,
            supercategories=("",) * len(index.categories),
            image=image,
            label=index.labels,
            boxes=boxes,
            areas=areas,
            crowd=index.is_ignored,
            ignore=np.zeros(len(boxes), bool),
            segmentations=segmentations,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The K category names."""
        return tuple(category.name for category in self.categories)

    @cached_property
    def masks(self) -> tuple[Rle, ...]:
        """The G masks, each in the frame of its picture.

        Raises:
            ValueError: an object has no segmentation, or one that does not fit its picture.
        """
        return read_masks(self.segmentations, self.sizes[self.image].tolist(), what="object")

    def of_images(self, images: NDArray[np.bool_]) -> GroundTruth:
        """Returns the pictures where `images`, (I,) bool, is true, with their objects."""
        objects = images[self.image]
        kept = np.flatnonzero(images)
        return replace(
            self.of_objects(objects),
            image_ids=self.image_ids[kept],
            file_names=tuple(self.file_names[i] for i in kept),
            sizes=self.sizes[kept],
            attributes=tuple(self.attributes[i] for i in kept),
            image=(np.cumsum(images) - 1)[self.image[objects]],
        )

    def of_objects(self, objects: NDArray[np.bool_]) -> GroundTruth:
        """Returns the objects where `objects`, (G,) bool, is true, with all pictures."""
        return replace(
            self,
            image=self.image[objects],
            label=self.label[objects],
            boxes=self.boxes[objects],
            areas=self.areas[objects],
            crowd=self.crowd[objects],
            ignore=self.ignore[objects],
            segmentations=tuple(self.segmentations[i] for i in np.flatnonzero(objects)),
        )

    def merged(self, name: str) -> GroundTruth:
        """Returns the same objects as one category called `name`."""
        return replace(
            self,
            categories=(Category(id=1, name=name),),
            supercategories=("",),
            label=np.zeros_like(self.label),
        )


@dataclass(frozen=True)
class DetectionTable:
    """Detections in the pictures of a `GroundTruth`, whose indices they use, in any order.

    image, label: (D,) int64.  boxes: (D, 4) float64.  scores: (D,) float64.
    masks: D run-length encodings in the frame of their picture, or None.
    mask_scores: (D,) float64 by which masks are ranked, or None (then by `scores`).
    """

    image: NDArray[np.int64]
    label: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    masks: tuple[Rle, ...] | None = None
    mask_scores: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        count = len(self.label)
        columns = [self.image, self.scores]
        columns += [] if self.mask_scores is None else [self.mask_scores]
        if self.boxes.shape != (count, 4) or any(len(column) != count for column in columns):
            raise ValueError(f"columns of different length: boxes {self.boxes.shape}, {count} rows")
        if self.masks is not None and len(self.masks) != count:
            raise ValueError(f"{len(self.masks)} masks for {count} detections")

    def __len__(self) -> int:
        return len(self.label)

    def ranking(self, kind: IouKind) -> NDArray[np.float64]:
        """Returns the (D,) scores that order detections in an evaluation of `kind`."""
        return self.mask_scores if kind == "segm" and self.mask_scores is not None else self.scores

    def areas(self, kind: IouKind) -> NDArray[np.float64]:
        """Returns the (D,) areas of boxes, or of masks in pixels."""
        return self._mask_areas if kind == "segm" else self.boxes[:, 2] * self.boxes[:, 3]

    @cached_property
    def _mask_areas(self) -> NDArray[np.float64]:
        return mask_areas(self.required_masks())

    def required_masks(self) -> tuple[Rle, ...]:
        """Returns the masks, or refuses a table that has none."""
        if self.masks is None:
            if len(self):
                raise ValueError("the detections carry no masks, so masks cannot be scored")
            return ()
        return self.masks

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> DetectionTable:
        """Returns the detections at `rows`: (D,) bool or (M,) int64 positions."""
        index = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return DetectionTable(
            image=self.image[index],
            label=self.label[index],
            boxes=self.boxes[index],
            scores=self.scores[index],
            masks=None if self.masks is None else tuple(self.masks[i] for i in index),
            mask_scores=None if self.mask_scores is None else self.mask_scores[index],
        )

    def of_images(self, images: NDArray[np.bool_]) -> DetectionTable:
        """Returns the detections that go with `GroundTruth.of_images(images)`."""
        kept = self.select(images[self.image])
        return replace(kept, image=(np.cumsum(images) - 1)[kept.image])

    def merged(self) -> DetectionTable:
        """Returns the detections that go with `GroundTruth.merged`."""
        return replace(self, label=np.zeros_like(self.label))
