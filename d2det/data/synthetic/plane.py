"""The endless plane: where streets run, and what kind of land lies between them.

Frames: pixels (x, y) of the scene; grid metres (u, v), in which streets are straight and follow
the axes. The grid is turned by the scene's angle and gently bent, so streets curve.

Letters: (i, j) the block between streets i and i + 1 across, j and j + 1 down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from d2det import rng
from d2det.data.synthetic import noise

BLOCK_M = 62.0
"""Mean distance of two streets."""
_BEND_M = 9.0
"""Most that streets are displaced from the straight grid."""
_BEND_SPACING_M = 150.0
PAVEMENT_M = 1.8

Land = Literal["homes", "parking", "tanks", "airfield", "field", "park", "water"]
Axis = Literal["u", "v"]
Floats = NDArray[np.floating[Any]]

_DRY_LAND: tuple[tuple[Land, float], ...] = (
    ("homes", 0.25),
    ("parking", 0.15),
    ("tanks", 0.19),
    ("airfield", 0.25),
    ("field", 0.08),
    ("park", 0.08),
)
_WATER_SHARE = 0.27


@dataclass(frozen=True)
class Block:
    """The land between four streets; its borders are those of the usable ground, in metres."""

    i: int
    j: int
    land: Land
    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """Extent along u."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Extent along v."""
        return self.bottom - self.top


@dataclass(frozen=True)
class Plane:
    """Everything that is a pure function of the seed.

    pixels_per_metre: scale of the pictures.
    """

    seed: int
    pixels_per_metre: float = 9.0

    @cached_property
    def angle(self) -> float:
        """Direction of the streets, in radians."""
        return float(rng.generator(self.seed, "angle").uniform(0, math.pi / 2))

    @cached_property
    def _offset(self) -> Floats:
        return rng.generator(self.seed, "offset").uniform(-5e4, 5e4, 2)

    def grid(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Returns u and v, (Y, X), at the crossings of pixel columns x and rows y."""
        x, y = x / self.pixels_per_metre, y / self.pixels_per_metre
        bends = [noise.smooth(key, _BEND_SPACING_M, x, y) for key in self._bend_keys]
        return self._turn(x[None, :], y[:, None], bends)

    def pixels(self, u: Floats, v: Floats) -> tuple[Floats, Floats]:
        """Returns the pixel positions x and y, (P,), of points of the grid."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        x, y = np.zeros_like(u), np.zeros_like(v)
        for _ in range(10):  # the bend changes slowly: each round leaves a quarter of the error
            bends = [noise.smooth_at(key, _BEND_SPACING_M, x, y) for key in self._bend_keys]
            got_u, got_v = self._turn(x, y, bends)
            x = x + cos * (u - got_u) - sin * (v - got_v)
            y = y + sin * (u - got_u) + cos * (v - got_v)
        return x * self.pixels_per_metre, y * self.pixels_per_metre

    @cached_property
    def _bend_keys(self) -> tuple[int, int]:
        return rng.key(self.seed, "bend", "u"), rng.key(self.seed, "bend", "v")

    def _turn(self, x: Floats, y: Floats, bends: list[noise.Floats]) -> tuple[Floats, Floats]:
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        du, dv = ((bend.astype(np.float64) * 2 - 1) * _BEND_M for bend in bends)
        return (
            cos * x + sin * y + du + self._offset[0],
            -sin * x + cos * y + dv + self._offset[1],
        )

    def streets(self, axis: Axis, low: float, high: float) -> range:
        """Returns the numbers of the streets across `axis` around [low, high] and one beyond."""
        return range(math.floor(low / BLOCK_M) - 1, math.ceil(high / BLOCK_M) + 2)

    def street(self, axis: Axis, number: int) -> float:
        """Returns where street `number` crosses `axis`."""
        return _street(self.seed, axis, number)

    def half_width(self, axis: Axis, number: int) -> float:
        """Returns half the width of a street's carriageway; 0 where there is none."""
        return _half_width(self.seed, axis, number)

    def block(self, i: int, j: int) -> Block:
        """Returns the block between streets i, i + 1 across u and j, j + 1 across v."""
        return _block(self.seed, i, j)

    def is_dry(self, axis: Axis, number: int, beside: int) -> bool:
        """Whether there is land on a side of a street, along block `beside`."""
        return any(block.land != "water" for block in self._sides(axis, number, beside))

    def is_quay(self, axis: Axis, number: int, beside: int) -> bool:
        """Whether a street, or the line where none was built, parts land from water."""
        return len({block.land == "water" for block in self._sides(axis, number, beside)}) == 2

    def _sides(self, axis: Axis, number: int, beside: int) -> tuple[Block, Block]:
        if axis == "u":
            return self.block(number - 1, beside), self.block(number, beside)
        return self.block(beside, number - 1), self.block(beside, number)


@lru_cache(maxsize=4096)
def _street(seed: int, axis: Axis, number: int) -> float:
    shift = rng.generator(seed, "street", axis, number).uniform(-0.16, 0.16)
    return (number + float(shift)) * BLOCK_M


@lru_cache(maxsize=4096)
def _half_width(seed: int, axis: Axis, number: int) -> float:
    draw = rng.generator(seed, "street width", axis, number).random()
    if draw < 0.12:
        return 0.0
    return 3.6 if draw < 0.75 else 6.6


@lru_cache(maxsize=4096)
def _block(seed: int, i: int, j: int) -> Block:
    left, right = (_edge(seed, "u", i, 1), _edge(seed, "u", i + 1, -1))
    top, bottom = (_edge(seed, "v", j, 1), _edge(seed, "v", j + 1, -1))
    return Block(i, j, _land(seed, i, j), left, top, right, bottom)


def _edge(seed: int, axis: Axis, number: int, side: int) -> float:
    """Where the ground beside a street begins, behind its pavement."""
    half = _half_width(seed, axis, number)
    return _street(seed, axis, number) + side * (half + PAVEMENT_M if half else 0.0)


def _land(seed: int, i: int, j: int) -> Land:
    """Water comes in patches of a few blocks, everything else block by block."""
    place = np.array([float(i)]), np.array([float(j)])
    if noise.smooth(rng.key(seed, "water"), 2.6, *place)[0, 0] < _WATER_SHARE:
        return "water"
    names, weights = zip(*_DRY_LAND, strict=True)
    draw = rng.generator(seed, "land", i, j).random() * sum(weights)
    land: Land = names[int(np.searchsorted(np.cumsum(weights), draw))]
    return land
