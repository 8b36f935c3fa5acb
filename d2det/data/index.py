"""All annotations of a data set as a few flat arrays.

Whatever the authors' format, reading ends here. Arrays instead of a dictionary an annotation: a
tenth of the memory, nothing for the garbage collector to walk through, and a picture's objects are
a slice.

Letters: N pictures, A annotations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2det.structures import Category


@dataclass(frozen=True)
class MaskTable:
    """Compressed COCO run lengths of A annotations, end to end; an empty string is no mask.

    text: (B,) uint8.  offsets: (A + 1,) int64, where each annotation's string begins.
    """

    text: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    def __getitem__(self, annotation: int) -> bytes:
        begin, end = self.offsets[annotation : annotation + 2]
        return self.text[begin:end].tobytes()


@dataclass(frozen=True)
class DatasetIndex:
    """Pictures in the order of the file, annotations grouped by picture.

    categories: K classes; the place is the label.
    file_names: N names relative to the folder of the pictures.
    image_ids: (N,) int64.  image_sizes: (N, 2) int64 rows (height, width).
    starts: (N + 1,) int64; annotations of picture i are starts[i] to starts[i + 1].
    annotation_ids: (A,) int64.  labels: (A,) int64.
    boxes: (A, 4) float32, half-open xyxy in pixels of the original picture, as the file has them:
        they may be empty or leave the picture.
    is_ignored: (A,) bool, crowds and ignore regions: never trained on, not counted in evaluation.
    masks: run lengths, or None where masks were not read.
    attributes: N sets of words about the pictures ("night", "fog"), or empty.
    """

    categories: tuple[Category, ...]
    file_names: tuple[str, ...]
    image_ids: NDArray[np.int64]
    image_sizes: NDArray[np.int64]
    starts: NDArray[np.int64]
    annotation_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float32]
    is_ignored: NDArray[np.bool_]
    masks: MaskTable | None = None
    attributes: tuple[frozenset[str], ...] = ()

    def __len__(self) -> int:
        return len(self.file_names)

    def annotations(self, image: int) -> slice:
        """Returns where the annotations of picture `image` (its place, not its id) are."""
        return slice(int(self.starts[image]), int(self.starts[image + 1]))


def build_index(
    categories: Sequence[Category],
    *,
    file_names: Sequence[str],
    image_ids: Sequence[int],
    image_sizes: Sequence[tuple[int, int]],
    owners: Sequence[int] | NDArray[np.int64],
    labels: Sequence[int] | NDArray[np.int64],
    boxes: Sequence[Sequence[float]] | NDArray[np.float64],
    is_ignored: Sequence[bool] | NDArray[np.bool_],
    annotation_ids: Sequence[int] | None = None,
    masks: Sequence[bytes] | None = None,
    attributes: Sequence[frozenset[str]] = (),
) -> DatasetIndex:
    """Returns the index of annotations given in any order.

    Args:
        categories: classes; labels are places among them.
        file_names: of N pictures.
        image_ids: of N pictures.
        image_sizes: (height, width) of N pictures.
        owners: the place of the picture each of A annotations belongs to.
        labels: of A annotations.
        boxes: (A, 4) half-open xyxy.
        is_ignored: of A annotations.
        annotation_ids: of A annotations; numbered from 1 if not given.
        masks: compressed run lengths of A annotations.
        attributes: words about N pictures.
    """
    order = np.argsort(np.asarray(owners, np.int64), kind="stable")
    counts = np.bincount(np.asarray(owners, np.int64), minlength=len(file_names))
    ids = np.arange(1, len(order) + 1) if annotation_ids is None else annotation_ids
    return DatasetIndex(
        categories=tuple(categories),
        file_names=tuple(file_names),
        image_ids=np.asarray(image_ids, np.int64),
        image_sizes=np.asarray(image_sizes, np.int64).reshape(-1, 2),
        starts=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        annotation_ids=np.asarray(ids, np.int64)[order],
        labels=np.asarray(labels, np.int64)[order],
        boxes=np.asarray(boxes, np.float64).reshape(-1, 4)[order].astype(np.float32),
        is_ignored=np.asarray(is_ignored, np.bool_)[order],
        masks=None if masks is None else _mask_table([masks[i] for i in order.tolist()]),
        attributes=tuple(attributes),
    )


def _mask_table(strings: Sequence[bytes]) -> MaskTable:
    return MaskTable(
        text=np.frombuffer(b"".join(strings), np.uint8),
        offsets=np.cumsum([0, *map(len, strings)], dtype=np.int64),
    )
