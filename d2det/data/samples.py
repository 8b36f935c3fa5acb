"""Pictures with their objects, one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from d2det.data import files
from d2det.data.index import DatasetIndex
from d2det.inference.decode import DecodeError, decode_image, read_image
from d2det.structures import Category


@dataclass(frozen=True)
class Sample:
    """One picture as the authors give it; crowds and ignore regions are left out.

    image: (H, W, 3) uint8 RGB.
    boxes: (G, 4) float32, half-open xyxy in pixels of the picture; they may be empty or leave it.
    labels: (G,) int64 in 0..K-1.
    masks: G compressed COCO run lengths of the whole picture, or None where an object has none.
    """

    image: NDArray[np.uint8]
    image_id: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: tuple[bytes, ...] | None = None


class DetectionDataset:
    """The pictures of an index, decoded when asked for. Safe to read from several threads."""

    def __init__(
        self, index: DatasetIndex, images: Path | str, *, blank_ignored: bool = False
    ) -> None:
        """Joins annotations and pictures.

        Args:
            index: the annotations.
            images: folder (or URL) of the pictures.
            blank_ignored: paint ignored regions black, as the authors of UAVDT do.
        """
        self.index = index
        self.images = str(images)
        self.blank_ignored = blank_ignored

    def __len__(self) -> int:
        return len(self.index)

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes; the place is the label."""
        return self.index.categories

    def path(self, position: int) -> str:
        """Returns where the picture at `position` (0..N-1) lies."""
        return files.join(self.images, self.index.file_names[position])

    def image(self, position: int) -> NDArray[np.uint8]:
        """Returns the picture at `position` as (H, W, 3) uint8 RGB.

        Raises:
            ValueError: it cannot be read, or has not the size its annotations were made for.
        """
        path = self.path(position)
        try:
            image = (
                decode_image(files.read_bytes(path)) if files.is_remote(path) else read_image(path)
            )
        except (DecodeError, OSError) as error:
            raise ValueError(f"{path}: {error}") from error
        if image.shape[:2] != (size := tuple(self.index.image_sizes[position].tolist())):
            raise ValueError(f"{path} is {image.shape[:2]} (h, w), its annotations say {size}")
        if self.blank_ignored:
            self._blank(image, position)
        return image

    def __getitem__(self, position: int) -> Sample:
        index, rows = self.index, self.index.annotations(position)
        used = np.flatnonzero(~index.is_ignored[rows]) + rows.start
        masks = None
        if index.masks is not None:
            strings = tuple(index.masks[row] for row in used.tolist())
            masks = strings if all(strings) else None
        return Sample(
            image=self.image(position),
            image_id=int(index.image_ids[position]),
            boxes=index.boxes[used],
            labels=index.labels[used],
            masks=masks,
        )

    def _blank(self, image: NDArray[np.uint8], position: int) -> None:
        rows = self.index.annotations(position)
        boxes = self.index.boxes[rows][self.index.is_ignored[rows]]
        for x1, y1, x2, y2 in np.maximum(np.rint(boxes), 0).astype(int).tolist():
            image[y1:y2, x1:x2] = 0
