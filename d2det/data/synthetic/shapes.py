"""What things are put together of: outlines in metres (x forward, y to the right) and colours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
"""(R, G, B)."""

Outline = NDArray[np.float64]
"""(P, 2) corners."""


@dataclass(frozen=True)
class Model:
    """How a thing looks from above.

    layers: outlines and colours, bottom first; their union is the silhouette.
    height_m: of the thing, which casts a shadow of it.
    """

    layers: tuple[tuple[Outline, Colour], ...]
    height_m: float = 0.0


Builder = Callable[[float, float, np.random.Generator], Model]
"""From length and width in metres and random numbers."""


def lighter(colour: Colour, factor: float) -> Colour:
    """Returns the colour times `factor`."""
    red, green, blue = (min(int(channel * factor + 0.5), 255) for channel in colour)
    return red, green, blue


def rectangle(length: float, width: float, *, x: float = 0.0, y: float = 0.0) -> Outline:
    """Returns a rectangle around (x, y)."""
    half = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
    return moved(half * (length, width), x, y)


def rounded(
    length: float, width: float, radius: float, *, x: float = 0.0, y: float = 0.0
) -> Outline:
    """Returns a rectangle around (x, y) whose corners are quarters of a circle."""
    radius = min(radius, length / 2, width / 2)
    quarter = np.linspace(0, math.pi / 2, 5)
    corners = []
    for turn, (sx, sy) in enumerate(((1, 1), (-1, 1), (-1, -1), (1, -1))):
        angles = quarter + turn * math.pi / 2
        middle = np.array((sx * (length / 2 - radius), sy * (width / 2 - radius)))
        corners.append(middle + radius * np.stack((np.cos(angles), np.sin(angles)), 1))
    return moved(np.concatenate(corners), x, y)


def ellipse(length: float, width: float, *, x: float = 0.0, y: float = 0.0) -> Outline:
    """Returns an ellipse around (x, y)."""
    angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    return moved(np.stack((np.cos(angles) * length, np.sin(angles) * width), 1) / 2, x, y)


def blob(radius: float, random: np.random.Generator, *, x: float = 0.0, y: float = 0.0) -> Outline:
    """Returns an irregular round outline around (x, y), such as a bush's."""
    angles = np.linspace(0, 2 * math.pi, 16, endpoint=False)
    radii = radius * random.uniform(0.82, 1.12, len(angles))
    return moved(np.stack((np.cos(angles) * radii, np.sin(angles) * radii), 1), x, y)


def profile(stations: list[tuple[float, float]]) -> Outline:
    """Returns a symmetric outline from (x, half width) stations, bow to stern."""
    right = np.array(stations)
    return np.concatenate((right, right[::-1] * (1, -1)))


def moved(outline: Outline, x: float, y: float) -> Outline:
    """Returns the outline moved by (x, y)."""
    shifted: Outline = outline + np.array((x, y))
    return shifted


def mirrored(outline: Outline) -> Outline:
    """Returns the outline on the other side of the long axis."""
    return outline * (1, -1)


def turned(outline: Outline, angle: float) -> Outline:
    """Returns the outline turned about the origin, from x towards y."""
    cos, sin = math.cos(angle), math.sin(angle)
    rotated: Outline = outline @ np.array([[cos, sin], [-sin, cos]])
    return rotated
