"""Models as pixels: smooth edges, exact masks and shadows, each drawn whole in its own rectangle.

A sprite never sees the window it is pasted into, so it is the same in every window.

Letters: h x w pixels of a sprite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from d2det.data.synthetic.shapes import Model, Outline

_FINE = 4
"""Each pixel is the mean of so many squared finer ones."""
_OPAQUE = 128


@dataclass(frozen=True)
class Sprite:
    """A picture of one thing at a place of the scene.

    x, y: its upper left pixel.
    colour: (h, w, 3) uint8 RGB, already multiplied by the cover.
    cover: (h, w) uint8, 255 where the thing covers the pixel.
    """

    x: int
    y: int
    colour: NDArray[np.uint8]
    cover: NDArray[np.uint8]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(h, w), the pixels of which it covers half or more."""
        solid: NDArray[np.bool_] = self.cover >= _OPAQUE
        return solid


def draw(model: Model, x: float, y: float, heading: float, pixels_per_metre: float) -> Sprite:
    """Returns the model with its middle at (x, y), its front towards `heading` (0 right, down)."""
    outlines = [_place(outline, x, y, heading, pixels_per_metre) for outline, _ in model.layers]
    left, top, width, height = _bounds(outlines)
    colour = np.zeros((height * _FINE, width * _FINE, 3), np.uint8)
    cover = np.zeros(colour.shape[:2], np.uint8)
    for outline, (_, paint) in zip(outlines, model.layers, strict=True):
        corners = _fine(outline, left, top)
        cv2.fillPoly(colour, [corners], paint)
        cv2.fillPoly(cover, [corners], 255)
    size = (width, height)
    return Sprite(
        left,
        top,
        cv2.resize(colour, size, interpolation=cv2.INTER_AREA),
        cv2.resize(cover, size, interpolation=cv2.INTER_AREA),
    )


def draw_shadow(sprite: Sprite, shift: tuple[float, float]) -> Sprite:
    """Returns the shadow of a thing, only the cover of which means anything.

    It is the sprite swept along `shift`, the pixels (x, y) that its top throws its shadow.
    """
    dx, dy = (round(component) for component in shift)
    height, width = sprite.cover.shape
    cover = np.zeros((height + abs(dy) + 2, width + abs(dx) + 2), np.uint8)
    left, top = 1 + max(-dx, 0), 1 + max(-dy, 0)
    cover[top : top + height, left : left + width] = sprite.cover
    reach = max(abs(dx), abs(dy))
    path = np.zeros((2 * reach + 1, 2 * reach + 1), np.uint8)
    cv2.line(path, (reach, reach), (reach - dx, reach - dy), 1)
    swept = cv2.GaussianBlur(cv2.dilate(cover, path), (3, 3), 0)
    return Sprite(sprite.x - left, sprite.y - top, np.zeros((0, 0, 3), np.uint8), swept)


def _fine(corners: Outline, left: int, top: int) -> NDArray[np.int32]:
    return np.rint((corners - (left, top)) * _FINE - 0.5).astype(np.int32)


def _place(
    outline: Outline, x: float, y: float, heading: float, pixels_per_metre: float
) -> Outline:
    cos, sin = math.cos(heading), math.sin(heading)
    turn = np.array([[cos, sin], [-sin, cos]]) * pixels_per_metre
    return outline @ turn + (x, y)


def _bounds(outlines: list[Outline]) -> tuple[int, int, int, int]:
    """Left, top, width and height of whole pixels around the outlines, with a pixel to spare."""
    corners = np.concatenate(outlines)
    low = np.floor(corners.min(0)).astype(int) - 1
    high = np.ceil(corners.max(0)).astype(int) + 2
    (left, top), (width, height) = low.tolist(), (high - low).tolist()
    return left, top, width, height
