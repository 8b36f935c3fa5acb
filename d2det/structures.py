"""Value objects that travel between the rooms of the detector.

Letters: N pictures of a batch, G ground truths or D detections of one picture, H x W pixels.
All boxes are (x1, y1, x2, y2) float32 in absolute pixels, half-open, of the frame each class names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypedDict

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Rle(TypedDict):
    """COCO run-length encoding of a mask: `size` is (height, width), `counts` compressed."""

    size: tuple[int, int]
    counts: bytes


@dataclass(frozen=True)
class Category:
    """A class as its data set knows it; its place in a tuple of categories is the model's label."""

    id: int
    name: str


@dataclass(frozen=True)
class ImageBatch:
    """Normalised pictures of different sizes, zero-padded right and bottom to one shape.

    pixels: (N, 3, H, W) float, RGB, H and W multiples of the coarsest stride.
    sizes: (N, 2) int64 on the CPU, the valid (height, width) of each picture before padding.
    """

    pixels: Tensor
    sizes: Tensor

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[1] != 3:
            raise ValueError(f"pixels must be (N, 3, H, W), got {tuple(self.pixels.shape)}")
        if self.sizes.shape != (self.pixels.shape[0], 2):
            raise ValueError(
                f"sizes must be ({self.pixels.shape[0]}, 2), got {tuple(self.sizes.shape)}"
            )

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> ImageBatch:
        """Returns the batch with its pixels on `device`; sizes stay on the CPU."""
        return replace(self, pixels=self.pixels.to(device, dtype, non_blocking=True))


@dataclass(frozen=True)
class CroppedMasks:
    """Binary masks of G objects, each kept only inside its own rectangle, never on a canvas.

    Memory is the sum of the rectangles, so thousands of small objects in a large picture are cheap.

    pixels: (P,) uint8 of 0 and 1, the rectangles one after the other, each in row-major order.
    rectangles: (G, 4) int64 rows (x, y, width, height) in pixels of the picture.
    starts: (G,) int64, index in `pixels` of each rectangle's first pixel.
    """

    pixels: Tensor
    rectangles: Tensor
    starts: Tensor

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 1:
            raise ValueError("pixels must be a flat uint8 tensor")
        if self.rectangles.shape != (len(self.starts), 4):
            raise ValueError(f"rectangles must be (G, 4), got {tuple(self.rectangles.shape)}")

    def __len__(self) -> int:
        return self.starts.shape[0]

    def to(self, device: torch.device | str) -> CroppedMasks:
        """Returns the masks on `device`."""
        return CroppedMasks(
            pixels=self.pixels.to(device, non_blocking=True),
            rectangles=self.rectangles.to(device, non_blocking=True),
            starts=self.starts.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Target:
    """Ground truth of one picture, in pixels of the resized input.

    boxes: (G, 4) float32.  labels: (G,) int64 in 0..K-1.
    masks: G masks, or None where the data has boxes only.
    """

    boxes: Tensor
    labels: Tensor
    masks: CroppedMasks | None = None

    def __post_init__(self) -> None:
        if self.boxes.shape != (len(self.labels), 4):
            raise ValueError(
                f"boxes {tuple(self.boxes.shape)} do not fit {len(self.labels)} labels"
            )
        if self.masks is not None and len(self.masks) != len(self.labels):
            raise ValueError(f"{len(self.masks)} masks for {len(self.labels)} labels")

    def __len__(self) -> int:
        return self.labels.shape[0]

    def to(self, device: torch.device | str) -> Target:
        """Returns the target on `device`."""
        return Target(
            boxes=self.boxes.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            masks=self.masks.to(device) if self.masks is not None else None,
        )


@dataclass(frozen=True)
class TrainingBatch:
    """One rank's share of a global batch.

    image_keys: one integer a picture, `rng.key(seed, epoch, image_id)`; every random choice made
    for that picture (which anchors, which proposals, which jitter) derives from it alone.
    """

    images: ImageBatch
    targets: tuple[Target, ...]
    image_keys: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.targets) == len(self.image_keys):
            raise ValueError(
                f"{len(self.images)} pictures, {len(self.targets)} targets and "
                f"{len(self.image_keys)} keys must be equally many"
            )

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def gt_boxes(self) -> Tensor:
        """(N, G, 4) float32; a picture with fewer than G objects is filled up with zeros."""
        return pad_sequence([target.boxes for target in self.targets], batch_first=True)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> TrainingBatch:
        """Returns the batch on `device`."""
        return TrainingBatch(
            images=self.images.to(device, dtype),
            targets=tuple(target.to(device) for target in self.targets),
            image_keys=self.image_keys,
        )


@dataclass(frozen=True)
class Detections:
    """What was found in one picture, in the frame of `size`, best first unless stated otherwise.

    boxes: (D, 4) float32.  scores: (D,) float32.  labels: (D,) int64 in 0..K-1.
    size: (height, width) of the frame in pixels.
    masks: D run-length encoded masks in that frame, or None.
    mask_scores: (D,) float32, how much the mask is to be trusted (box score + 0.3 predicted IoU).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    size: tuple[int, int]
    masks: tuple[Rle, ...] | None = None
    mask_scores: Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.labels)
        if self.boxes.shape != (count, 4) or self.scores.shape != (count,):
            raise ValueError(
                f"boxes {tuple(self.boxes.shape)} and scores {tuple(self.scores.shape)} "
                f"do not fit {count} labels"
            )
        if (self.masks is None) != (self.mask_scores is None):
            raise ValueError("masks and mask_scores come together")
        if self.masks is not None and len(self.masks) != count:
            raise ValueError(f"{len(self.masks)} masks for {count} detections")
        if self.mask_scores is not None and self.mask_scores.shape != (count,):
            raise ValueError(f"mask_scores {tuple(self.mask_scores.shape)} for {count} detections")

    def __len__(self) -> int:
        return self.labels.shape[0]

    def select(self, index: Tensor) -> Detections:
        """Returns the detections at `index`: (M,) int64 positions or (D,) bool."""
        if index.dtype == torch.bool:
            index = index.nonzero().flatten()
        masks = None
        if self.masks is not None:
            masks = tuple(self.masks[i] for i in index.tolist())
        return replace(
            self,
            boxes=self.boxes[index],
            scores=self.scores[index],
            labels=self.labels[index],
            masks=masks,
            mask_scores=None if self.mask_scores is None else self.mask_scores[index],
        )


@dataclass(frozen=True)
class RawDetections:
    """What the network found in one picture, in pixels of the resized input, best first.

    boxes: (D, 4) float32, not clipped to the picture (the released code does not either, and mask
        pasting and merging across windows want the whole box).
    scores: (D,) float32.  labels: (D,) int64 in 0..K-1.
    size: (height, width) of the resized picture without padding.
    masks: (D, M, M) float32 probabilities on the grid of each box, or None.
    mask_scores: (D,) float32, box score + 0.3 predicted IoU, or None.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    size: tuple[int, int]
    masks: Tensor | None = None
    mask_scores: Tensor | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]

    def select(self, index: Tensor) -> RawDetections:
        """Returns the detections at `index` (M,) int64."""
        return replace(
            self,
            boxes=self.boxes[index],
            scores=self.scores[index],
            labels=self.labels[index],
            masks=None if self.masks is None else self.masks[index],
            mask_scores=None if self.mask_scores is None else self.mask_scores[index],
        )
