"""Models that need no network: what they find is a function of the pixels alone."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from d2det.structures import Detections, Rle


def find(image: NDArray[np.uint8]) -> Detections:
    """Some boxes whose number, place and score depend on the picture."""
    height, width = image.shape[:2]
    seed = int(image[::5, ::5].astype(np.int64).sum())
    generator = np.random.default_rng(seed)
    count = seed % 5
    corners = generator.uniform(0, 0.5, (count, 2))
    sides = generator.uniform(0.05, 0.5, (count, 2))
    boxes = np.concatenate((corners, corners + sides), 1) * [width, height, width, height]
    scores = np.sort(generator.uniform(0.1, 1, count))[::-1].copy()
    return Detections(
        boxes=torch.from_numpy(boxes.astype(np.float32)),
        scores=torch.from_numpy(scores.astype(np.float32)),
        labels=torch.from_numpy(generator.integers(0, 2, count)),
        size=(height, width),
    )


class Plain:
    """Finds boxes of two classes."""

    classes = ("cat", "dog")

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        return [find(image) for image in images]


class Counting(Plain):
    """Appends a line for each picture it predicts to a file, and takes a while.

    D2DET_TEST_COUNT and D2DET_TEST_SLEEP say which file and how long, or the lines of the file
    D2DET_TEST_SETTINGS, which can change while a node lives.
    """

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        count, sleep_s = _settings()
        if count:
            with Path(count).open("a") as file:
                for image in images:
                    digest = hashlib.sha256(image.tobytes()).hexdigest()
                    file.write(f"{os.getpid()} {digest}\n")
        time.sleep(sleep_s * len(images))
        return super().__call__(images)


def _settings() -> tuple[str, float]:
    if path := os.environ.get("D2DET_TEST_SETTINGS"):
        count, sleep_s = Path(path).read_text().split()
        return count, float(sleep_s)
    return os.environ.get("D2DET_TEST_COUNT", ""), float(os.environ.get("D2DET_TEST_SLEEP", "0"))


class Squares(Plain):
    """Finds bright squares exactly, with their masks: what windows see of an object is known."""

    classes = ("square",)

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        return [_squares(image) for image in images]


class Choosy(Plain):
    """Fails on pictures whose first pixel is pure red, whoever they come with."""

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        if any((image[0, 0] == (255, 0, 0)).all() for image in images):
            raise RuntimeError("a red picture")
        return super().__call__(images)


class Deadly(Plain):
    """Ends its process on pictures whose first pixel is pure red."""

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        if any((image[0, 0] == (255, 0, 0)).all() for image in images):
            os._exit(11)
        return super().__call__(images)


class Broken(Plain):
    """Fails on everything."""

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        raise RuntimeError("nothing works")


def _squares(image: NDArray[np.uint8]) -> Detections:
    import cv2

    count, _, stats, _ = cv2.connectedComponentsWithStats((image[..., 0] > 128).astype(np.uint8))
    stats = stats[1:]
    boxes = np.stack(
        (stats[:, 0], stats[:, 1], stats[:, 0] + stats[:, 2], stats[:, 1] + stats[:, 3]), 1
    )
    masks = tuple(_box_mask(box, image.shape[:2]) for box in boxes.tolist())
    return Detections(
        boxes=torch.from_numpy(boxes.astype(np.float32)),
        scores=torch.full((count - 1,), 0.9),
        labels=torch.zeros(count - 1, dtype=torch.int64),
        size=(image.shape[0], image.shape[1]),
        masks=masks,
        mask_scores=torch.full((count - 1,), 0.9),
    )


def _box_mask(box: list[int], size: tuple[int, ...]) -> Rle:
    from pycocotools import mask as coco_mask

    x1, y1, x2, y2 = box
    pixels = np.zeros(size[:2], np.uint8, order="F")
    pixels[y1:y2, x1:x2] = 1
    encoded = coco_mask.encode(pixels)
    return Rle(size=(size[0], size[1]), counts=encoded["counts"])
