"""Training examples joined to the batch one rank computes in one step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from d2det.config import InputConfig
from d2det.inference.preprocess import PAD_MULTIPLE, resized_size, to_batch
from d2det.structures import ImageBatch, Target, TrainingBatch


def collate(
    examples: Sequence[tuple[NDArray[np.uint8], Target]],
    image_keys: Sequence[int],
    config: InputConfig,
    *,
    min_size: tuple[int, int] = (0, 0),
    pin_memory: bool = False,
) -> TrainingBatch:
    """Returns the examples as one batch; no example at all gives a batch of no picture.

    Args:
        examples: N resized pictures, (H, W, 3) uint8 RGB, with their objects.
        image_keys: `rng.key(seed, epoch, image_id)` of each.
        config: mean and deviation of the pixels.
        min_size: (height, width) the batch has at least; see `largest_input`.
        pin_memory: make the pixels in page-locked memory.
    """
    pictures = [image for image, _ in examples]
    return TrainingBatch(
        images=to_batch(pictures, config, min_size=min_size, pin_memory=pin_memory)
        if pictures
        else empty_images(),
        targets=tuple(target for _, target in examples),
        image_keys=tuple(image_keys),
    )


def largest_input(sizes: NDArray[np.int64], config: InputConfig) -> tuple[int, int]:
    """Returns the (height, width) that holds all pictures of `sizes` (N, 2), once resized.

    Convolutions see a picture's padding. The parts of a global batch are therefore padded alike,
    whoever computes them: otherwise the gradient would depend on how the batch is cut.
    """
    resized = [
        resized_size(height, width, config.short_side, config.long_side)
        for height, width in sizes.tolist()
    ]
    return max(height for height, _ in resized), max(width for _, width in resized)


def empty_images() -> ImageBatch:
    """Returns no picture, as large as the smallest input: what an idle rank feeds its network."""
    return ImageBatch(
        pixels=torch.zeros((0, 3, PAD_MULTIPLE, PAD_MULTIPLE)),
        sizes=torch.zeros((0, 2), dtype=torch.int64),
    )
