"""All things on a part of the plane: the contents of its blocks and the traffic of its streets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from d2det import rng
from d2det.data.synthetic.plane import Axis, Plane
from d2det.data.synthetic.yards import FILLERS, Item, Yard

_HEADWAY_M = 14.0
"""Length of street that one vehicle has for itself."""
_CROSSING_M = 9.0
"""Traffic keeps this far from the middle of crossing streets."""


def items_between(plane: Plane, u: tuple[float, float], v: tuple[float, float]) -> list[Item]:
    """Returns everything in the blocks and streets that the grid rectangle touches, in order."""
    columns, rows = plane.streets("u", *u), plane.streets("v", *v)
    items: list[Item] = []
    for j in rows:
        for i in columns:
            items += _block_items(plane, i, j)
            items += _street_items(plane, "u", i, j)
            items += _street_items(plane, "v", j, i)
    return items


@lru_cache(maxsize=1024)
def _block_items(plane: Plane, i: int, j: int) -> tuple[Item, ...]:
    block = plane.block(i, j)
    yard = Yard(plane, block)
    FILLERS[block.land](yard)
    return tuple(yard.items)


@lru_cache(maxsize=2048)
def _street_items(plane: Plane, axis: Axis, number: int, beside: int) -> tuple[Item, ...]:
    """The traffic of a street along one block: each lane keeps right and drives one way."""
    half = plane.half_width(axis, number)
    if not half or not plane.is_dry(axis, number, beside):
        return ()
    other: Axis = "v" if axis == "u" else "u"
    start, end = plane.street(other, beside), plane.street(other, beside + 1)
    random = rng.generator(plane.seed, "traffic", axis, number, beside)
    items: list[Item] = []
    for lane in _lanes(half):
        for place in _places(random, start + _CROSSING_M, end - _CROSSING_M):
            kind, length, width = _vehicle(random)
            across = plane.street(axis, number) + lane + float(random.uniform(-0.2, 0.2))
            # Right of the direction of travel: +v drives on the -u side, +u on the +v side.
            forward = lane < 0 if axis == "u" else lane > 0
            u, v = (across, place) if axis == "u" else (place, across)
            heading = (math.pi / 2 if axis == "u" else 0.0) + (0.0 if forward else math.pi)
            key = rng.key(plane.seed, "vehicle", axis, number, beside, len(items))
            items.append(Item(kind, u, v, heading, length, width, key))
    return tuple(items)


def _lanes(half: float) -> tuple[float, ...]:
    """Middles of the lanes, from the middle of the street."""
    return (-half / 2, half / 2) if half < 5 else (-0.75 * half, -half / 4, half / 4, 0.75 * half)


def _places(random: np.random.Generator, start: float, end: float) -> Iterator[float]:
    count = int((end - start) // _HEADWAY_M)
    for slot in range(count):
        if random.random() < 0.45:
            yield start + (slot + 0.5) * (end - start) / count + float(random.uniform(-0.6, 0.6))


def _vehicle(random: np.random.Generator) -> tuple[str, float, float]:
    draw = random.random()
    if draw < 0.62:
        return "car", float(random.uniform(4.1, 4.9)), float(random.uniform(1.8, 1.98))
    if draw < 0.84:
        return "truck", float(random.uniform(7.5, 11.5)), 2.5
    return "bus", float(random.uniform(11.0, 12.4)), 2.55
