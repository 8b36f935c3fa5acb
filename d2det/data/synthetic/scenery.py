"""What stands around the things to be found: roofs, trees, piers, paint on the ground."""

from __future__ import annotations

import math

import numpy as np

from d2det.data.synthetic.shapes import (
    Colour,
    Model,
    blob,
    ellipse,
    lighter,
    profile,
    rectangle,
    rounded,
)

_PAINT: Colour = (214, 212, 202)
_ROOFS: tuple[Colour, ...] = (
    (158, 92, 72), (142, 78, 62), (120, 116, 112), (96, 98, 106), (132, 112, 92), (172, 120, 92),
)  # fmt: skip
_HALL_ROOFS: tuple[Colour, ...] = (
    (188, 190, 190),
    (150, 162, 172),
    (172, 164, 150),
    (132, 146, 136),
)
_LEAVES: tuple[Colour, ...] = (
    (58, 88, 44),
    (70, 98, 50),
    (50, 80, 46),
    (84, 104, 56),
    (64, 84, 40),
)


def house(length: float, width: float, random: np.random.Generator) -> Model:
    """Returns a gable roof, its ridge along the length, one side in the light."""
    roof = _ROOFS[int(random.integers(len(_ROOFS)))]
    tiles = [
        (rectangle(0.12, width, x=float(x)), lighter(roof, 0.94))
        for x in np.arange(-length / 2 + 0.8, length / 2 - 0.4, 1.1)
    ]
    return Model(
        (
            (rectangle(length, width), lighter(roof, 0.84)),
            (rectangle(length, width / 2, y=width / 4), lighter(roof, 1.14)),
            *tiles,
            (rectangle(length, 0.3), lighter(roof, 1.3)),
            (rectangle(0.9, 0.9, x=length * 0.24, y=-width * 0.22), (120, 84, 74)),
        ),
        height_m=5.0,
    )


def hall(length: float, width: float, random: np.random.Generator) -> Model:
    """Returns the corrugated roof of a warehouse or hangar."""
    roof = _HALL_ROOFS[int(random.integers(len(_HALL_ROOFS)))]
    sheets = [
        (rectangle(0.7, width - 0.8, x=float(x)), lighter(roof, 0.95))
        for x in np.arange(-length / 2 + 1.2, length / 2 - 0.6, 1.5)
    ]
    vents = [
        (rounded(1.6, 1.6, 0.2, x=float(x), y=width * 0.2), (116, 118, 120))
        for x in np.linspace(-0.3, 0.3, 3) * length
    ]
    return Model(
        (
            (rectangle(length, width), lighter(roof, 0.78)),
            (rectangle(length - 0.8, width - 0.8), roof),
            *sheets,
            (rectangle(length - 0.8, 0.4), lighter(roof, 1.12)),
            *vents,
        ),
        height_m=7.0,
    )


def tree(length: float, width: float, random: np.random.Generator) -> Model:
    """Returns a crown of diameter `length`: clumps of leaves, lighter towards its middle."""
    leaves = _LEAVES[int(random.integers(len(_LEAVES)))]
    radius = length / 2
    layers = [(blob(radius, random), lighter(leaves, 0.72))]
    for _ in range(9):
        distance, angle = radius * 0.62 * math.sqrt(random.random()), random.uniform(0, 2 * math.pi)
        x, y = distance * math.cos(angle), distance * math.sin(angle)
        clump = blob(radius * float(random.uniform(0.22, 0.4)), random, x=x, y=y)
        layers.append((clump, lighter(leaves, float(random.uniform(0.86, 1.28)))))
    return Model(tuple(layers), height_m=float(random.uniform(0.8, 1.2)) * length)


def pier(length: float, width: float, random: np.random.Generator) -> Model:
    """Returns a jetty of planks."""
    planks = [
        (rectangle(0.12, width, x=float(x)), (112, 94, 72))
        for x in np.arange(-length / 2 + 0.6, length / 2, 0.8)
    ]
    return Model(((rectangle(length, width), (146, 126, 98)), *planks), height_m=0.8)


def bays(length: float, width: float, random: np.random.Generator) -> Model:
    """Returns the lines between parking bays; width is a bay's depth."""
    count = round(length / BAY_M)
    lines = np.linspace(-length / 2, length / 2, count + 1)
    return Model(tuple((rectangle(0.2, width, x=float(x)), _PAINT) for x in lines))


BAY_M = 2.75
"""Width of a parking bay."""


def helipad(length: float, width: float, random: np.random.Generator) -> Model:
    """Returns a circle with an H in it."""
    bar = length * 0.16
    return Model(
        (
            (ellipse(length, length), _PAINT),
            (ellipse(length - 1.0, length - 1.0), (112, 120, 116)),
            *((rectangle(length * 0.5, 0.7, y=y), _PAINT) for y in (-bar, bar)),
            (rectangle(0.7, 2 * bar), _PAINT),
        )
    )


def taxiway(length: float, width: float, random: np.random.Generator) -> Model:
    """Returns a yellow guide line with stop bars across it."""
    bars = np.linspace(-0.32, 0.32, 2) * length
    return Model(
        (
            (rectangle(length, 0.3), (206, 172, 56)),
            *((rectangle(0.3, 4.0, x=float(x)), (206, 172, 56)) for x in bars),
        )
    )


def slab(length: float, width: float, random: np.random.Generator) -> Model:
    """Returns light paving: a drive, a terrace."""
    grey = int(random.integers(160, 190))
    return Model(((rounded(length, width, 0.3), (grey, grey - 4, grey - 12)),))


def basin(length: float, width: float, random: np.random.Generator) -> Model:
    """Returns the earth wall around tanks."""
    return Model(
        (
            (rectangle(length, width), (176, 166, 140)),
            (rectangle(length - 1.2, width - 1.2), (146, 140, 126)),
        )
    )


def wake(length: float, width: float, random: np.random.Generator) -> Model:
    """Returns the foam behind a moving ship."""
    wide, narrow = [(0.5, 0.1), (-0.1, 0.3), (-0.5, 0.5)], [(0.5, 0.05), (-0.4, 0.16)]
    return Model(
        (
            (profile([(x * length, y * width) for x, y in wide]), (84, 116, 130)),
            (profile([(x * length, y * width) for x, y in narrow]), (140, 164, 172)),
        )
    )
