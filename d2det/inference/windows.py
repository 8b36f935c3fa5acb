"""A large picture as overlapping windows: where they lie, and what is found in each.

A window is predicted like a picture of its own; its detections are then moved into the frame of
the scene, where `merge` joins them. The scene itself is only ever read window by window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from d2det import rle
from d2det.structures import Detections

PredictImages = Callable[[Sequence[NDArray[np.uint8]]], list[Detections]]
"""Pictures, each (H, W, 3) uint8 RGB, to the detections of each in its own frame."""


@dataclass(frozen=True, order=True)
class Window:
    """A rectangle of a scene: left upper corner and size in pixels. Windows sort row by row."""

    y: int
    x: int
    height: int
    width: int


@dataclass(frozen=True)
class WindowDetections:
    """What was found in a window, in the frame of the scene."""

    window: Window
    found: Detections


class SceneReader(Protocol):
    """A picture that is read by window; a GeoTIFF, say, of more pixels than memory holds."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Returns the (height, width, 3) uint8 RGB pixels of a window inside the scene."""


@dataclass(frozen=True)
class ArrayScene:
    """A scene that is in memory; pixels: (H, W, 3) uint8 RGB."""

    pixels: NDArray[np.uint8]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Returns the pixels of a window; no copy."""
        return self.pixels[y : y + height, x : x + width]


def cut_windows(size: tuple[int, int], *, tile: int, overlap: int) -> list[Window]:
    """Returns the windows that cover a scene of `size` (height, width), row by row.

    All are `tile` pixels wide and high (less where the scene is smaller), neighbours share at least
    `overlap` pixels, and the last of a row or column is moved inside the scene. An object no larger
    than the overlap lies whole in some window.
    """
    check_tiling(tile=tile, overlap=overlap)
    (height, width) = size
    return [
        Window(y, x, min(tile, height), min(tile, width))
        for y in _starts(height, tile, overlap)
        for x in _starts(width, tile, overlap)
    ]


def check_tiling(*, tile: int, overlap: int) -> None:
    """Raises ValueError where windows of this size and overlap would not advance."""
    if tile < 1:
        raise ValueError(f"tile is {tile} pixels, it must be at least 1")
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap {overlap} must be at least 0 and less than tile {tile}")


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def predict_windows(
    predict: PredictImages, scene: SceneReader, windows: Sequence[Window], *, batch: int = 8
) -> Iterator[WindowDetections]:
    """Yields what `predict` finds in each window, holding the pixels of `batch` windows at most."""
    for start in range(0, len(windows), batch):
        group = windows[start : start + batch]
        images = [scene.read(w.x, w.y, w.width, w.height) for w in group]
        for window, found in zip(group, predict(images), strict=True):
            yield WindowDetections(window, in_scene(found, window, scene.size))


def in_scene(found: Detections, window: Window, size: tuple[int, int]) -> Detections:
    """Returns detections of a window's own frame in the frame of the scene of `size` (h, w)."""
    shift = torch.tensor([window.x, window.y, window.x, window.y], dtype=found.boxes.dtype)
    masks = found.masks
    if masks is not None:
        masks = tuple(rle.place(mask, window.x, window.y, size) for mask in masks)
    return replace(found, boxes=found.boxes + shift, masks=masks, size=size)
