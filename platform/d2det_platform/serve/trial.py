"""Models that are no detectors, by which the endpoint itself is tried and measured.

d2det serve --model d2det_platform.serve.trial:Echo
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from d2det.inference.headers import read_header
from d2det.structures import Category, Detections


class Echo:
    """Takes pictures undecoded and finds nothing: what is left is the endpoint."""

    categories = (Category(0, "nothing"),)
    reads_encoded = True

    def __call__(self, images: Sequence[Any]) -> list[Detections]:
        """Returns no detections for each picture."""
        return [_nothing((1, 1)) for _ in images]


class Decoded:
    """Takes decoded pictures and finds nothing: the endpoint and its decoding."""

    categories = (Category(0, "nothing"),)

    def __call__(self, images: Sequence[Any]) -> list[Detections]:
        """Returns no detections for each picture."""
        return [_nothing(image.shape[:2]) for image in images]


class Slow:
    """Takes 20 ms a batch and 2 ms a picture, as a small network on a large GPU does."""

    categories = (Category(0, "nothing"),)
    reads_encoded = True
    batch_s, picture_s = 0.020, 0.002

    def __call__(self, images: Sequence[Any]) -> list[Detections]:
        """Returns no detections for each picture, after a while."""
        time.sleep(self.batch_s + self.picture_s * len(images))
        return [_nothing((1, 1)) for _ in images]


class Measured:
    """Finds one box as large as the picture, so that an answer tells which picture it is for."""

    categories = (Category(0, "picture"),)
    reads_encoded = True

    def __call__(self, images: Sequence[bytes]) -> list[Detections]:
        """Returns the outline of each picture, after a while."""
        from io import BytesIO

        time.sleep(0.020 + 0.002 * len(images))
        sizes = [read_header(BytesIO(image)).size for image in images]
        return [
            Detections(
                boxes=torch.tensor([[0.0, 0.0, width, height]]),
                scores=torch.ones(1),
                labels=torch.zeros(1, dtype=torch.int64),
                size=(height, width),
            )
            for height, width in sizes
        ]


def _nothing(size: tuple[int, int]) -> Detections:
    return Detections(
        boxes=torch.zeros(0, 4),
        scores=torch.zeros(0),
        labels=torch.zeros(0, dtype=torch.int64),
        size=size,
    )
