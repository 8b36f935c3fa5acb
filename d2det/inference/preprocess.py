"""From decoded pictures to network input, exactly as the official pipeline does (d2det.md 1).

Letters: N pictures, H x W pixels. Pictures are (H, W, 3) uint8 RGB arrays until they are batched.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from d2det.config import InputConfig
from d2det.structures import ImageBatch

PAD_MULTIPLE = 32
"""Padded sides are multiples of this, the stride of the deepest backbone stage."""


def resize_scale(height: int, width: int, short_side: int, long_side: int) -> float:
    """Returns the factor that brings the picture inside `short_side` x `long_side`.

    It is one number for both axes; boxes are mapped with it although rounding the sizes makes
    the true ratios of the axes differ in the fourth digit (as in the official code).
    """
    return min(long_side / max(height, width), short_side / min(height, width))


def resized_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Returns the (height, width) of the resized picture; a side never vanishes."""
    scale = resize_scale(height, width, short_side, long_side)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Returns the picture, (H, W, 3) uint8, with bilinear interpolation at size (height, width)."""
    if image.shape[:2] == size:
        return image
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)


def resize_to_input(image: NDArray[np.uint8], config: InputConfig) -> NDArray[np.uint8]:
    """Returns the picture, (H, W, 3) uint8, at the size at which the network takes it."""
    height, width = image.shape[:2]
    return resize_image(image, resized_size(height, width, config.short_side, config.long_side))


def padded_size(height: int, width: int) -> tuple[int, int]:
    """Returns the (height, width) after padding a resized picture right and bottom."""
    return -(-height // PAD_MULTIPLE) * PAD_MULTIPLE, -(-width // PAD_MULTIPLE) * PAD_MULTIPLE


def to_batch(
    images: Sequence[NDArray[np.uint8]],
    config: InputConfig,
    *,
    min_size: tuple[int, int] = (0, 0),
    pin_memory: bool = False,
) -> ImageBatch:
    """Returns resized pictures, each (H, W, 3) uint8 RGB, normalised and zero-padded to one shape.

    (x - mean) / std with every operand float32: other orders of the arithmetic differ in the last
    bit. Padding happens after normalisation, so padded pixels are the mean colour.

    min_size: (height, width) the batch has at least, for one that is part of a larger one.
    pin_memory: make the batch in page-locked memory, from which a GPU copies while it computes;
        torch keeps such memory for the next batch.
    """
    if not images:
        raise ValueError("a batch needs at least one picture")
    sizes = torch.tensor([image.shape[:2] for image in images], dtype=torch.int64)
    height, width = padded_size(*torch.maximum(sizes.amax(0), torch.tensor(min_size)).tolist())
    shape = (len(images), 3, height, width)
    pixels = torch.zeros(shape, dtype=torch.float32, pin_memory=pin_memory)
    mean = torch.tensor(config.mean, dtype=torch.float32)[:, None, None]
    std = torch.tensor(config.std, dtype=torch.float32)[:, None, None]
    for slot, image in zip(pixels, images, strict=True):
        view = slot[:, : image.shape[0], : image.shape[1]]
        view.copy_(torch.from_numpy(image).permute(2, 0, 1))
        view.sub_(mean).div_(std)
    return ImageBatch(pixels=pixels, sizes=sizes)
