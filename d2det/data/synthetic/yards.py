"""What stands on each kind of land, laid out in places so that nothing overlaps.

A yard is a block with its axes chosen: s along its rows, t across them, in metres from a corner.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from d2det import rng
from d2det.data.synthetic.plane import Block, Land, Plane
from d2det.data.synthetic.scenery import BAY_M

_ALONG, _ACROSS = 0.0, math.pi / 2
_BAY_DEPTH_M, _AISLE_M = 5.3, 6.6
_LOT_M = 15.5
"""Width of a house's piece of land."""


@dataclass(frozen=True)
class Item:
    """One thing on the plane.

    kind: name of its builder.  key: of its random numbers.
    u, v: its middle, in metres of the grid.  heading: of its front, from u towards v, in radians.
    length, width: metres along and across the heading.
    """

    kind: str
    u: float
    v: float
    heading: float
    length: float
    width: float
    key: int


class Yard:
    """A block to be filled.

    has_shore: it is water, and there is land where s begins.
    """

    def __init__(self, plane: Plane, block: Block) -> None:
        self.random = rng.generator(plane.seed, "contents", block.i, block.j)
        self.items: list[Item] = []
        self._seed, self._block = plane.seed, block
        self._is_turned = self.chance(0.5)
        self._starts_far = False
        self.has_shore = block.land == "water" and self._turn_to_shore(plane)
        sides = block.width, block.height
        self.length, self.depth = sides[::-1] if self._is_turned else sides

    def put(
        self, kind: str, s: float, t: float, heading: float, length: float, width: float
    ) -> None:
        """Adds a thing whose middle is at (s, t); heading is from s towards t."""
        block = self._block
        if self._starts_far:
            s, heading = self.length - s, math.pi - heading
        if self._is_turned:
            s, t, heading = t, s, math.pi / 2 - heading
        key = rng.key(self._seed, "item", block.i, block.j, len(self.items))
        u, v = block.left + s, block.top + t
        self.items.append(Item(kind, u, v, heading, length, width, key))

    def _turn_to_shore(self, plane: Plane) -> bool:
        """Lets s begin at a side where there is land; false if there is none."""
        i, j = self._block.i, self._block.j
        neighbours = {  # (is turned, starts far)
            (False, False): plane.block(i - 1, j),
            (False, True): plane.block(i + 1, j),
            (True, False): plane.block(i, j - 1),
            (True, True): plane.block(i, j + 1),
        }
        dry = [side for side, block in neighbours.items() if block.land != "water"]
        if dry:
            self._is_turned, self._starts_far = dry[int(self.random.integers(len(dry)))]
        return bool(dry)

    def uniform(self, low: float, high: float) -> float:
        """Returns a random number between two others."""
        return float(self.random.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """Returns true so often."""
        return bool(self.random.random() < probability)

    def plant(
        self, count: int, *, low: float = 3.0, high: float = 6.5, margin: float = 1.0
    ) -> None:
        """Adds trees of low to high metres where nothing else stands."""
        for _ in range(count):
            size = self.uniform(low, high)
            s = self.uniform(margin + size / 2, self.length - margin - size / 2)
            t = self.uniform(margin + size / 2, self.depth - margin - size / 2)
            self.put("tree", s, t, self.uniform(0, 2 * math.pi), size, size)

    def line(self, chance: float) -> None:
        """Adds street trees along the four sides, here and there."""
        along, across = np.arange(5.0, self.length - 4, 8.0), np.arange(9.0, self.depth - 8, 8.0)
        places = [(s, t) for s in along.tolist() for t in (0.4, self.depth - 0.4)]
        places += [(s, t) for t in across.tolist() for s in (0.4, self.length - 0.4)]
        for s, t in places:
            if self.chance(chance):
                size = self.uniform(3.6, 5.6)
                self.put("tree", s, t, self.uniform(0, 2 * math.pi), size, size)


def homes(yard: Yard) -> None:
    """Two rows of houses with drives, cars, gardens and pools."""
    count = int(yard.length // _LOT_M)
    pitch = yard.length / count
    for lot in range(count):
        for side in (0, 1):
            _home(yard, (lot + 0.5) * pitch, pitch, side)
    yard.plant(int(yard.length * yard.depth / 150))
    yard.line(0.3)


def _home(yard: Yard, middle: float, pitch: float, side: int) -> None:
    """One lot; `side` 1 is at the far end of the block, facing the other street."""

    def across(distance: float) -> float:
        return yard.depth - distance if side else distance

    length, width = yard.uniform(8.2, 9.8), yard.uniform(7.0, 9.0)
    front = yard.uniform(5.0, 6.5)
    house, drive = middle - pitch / 2 + 1 + length / 2, middle + pitch / 2 - 2.2
    yard.put("slab", drive, across(4.6), _ACROSS, 9.2, 3.0)
    if yard.chance(0.75):
        heading = _ACROSS * (1 if yard.chance(0.5) else -1)
        _car(yard, drive, across(yard.uniform(3.0, 5.6)), heading + yard.uniform(-0.06, 0.06))
    yard.put("house", house, across(front + width / 2), _ALONG, length, width)
    garden = front + width + 1.5
    room = yard.depth / 2 - garden - 1
    if room > 5.0 and yard.chance(0.6):
        size = yard.uniform(6.0, 8.0), yard.uniform(3.4, min(4.4, room - 1.2))
        s, t = middle + yard.uniform(-2, 2), across(garden + room / 2)
        yard.put("slab", s, t, _ALONG, size[0] + 1.8, size[1] + 1.8)
        yard.put("swimming_pool", s, t, _ALONG, *size)


def parking(yard: Yard) -> None:
    """Rows of bays on both sides of aisles, partly taken."""
    module = 2 * _BAY_DEPTH_M + _AISLE_M
    rows, bays = int(yard.depth // module), int((yard.length - 3) // BAY_M)
    taken, start = yard.uniform(0.12, 0.5), (yard.length - bays * BAY_M) / 2
    for row in range(rows):
        near = (yard.depth - rows * module) / 2 + row * module + _BAY_DEPTH_M / 2
        for t, heading in ((near, -_ACROSS), (near + _BAY_DEPTH_M + _AISLE_M, _ACROSS)):
            yard.put("bays", yard.length / 2, t, _ALONG, bays * BAY_M, _BAY_DEPTH_M)
            for bay in range(bays):
                if yard.chance(taken):
                    backwards = math.pi if yard.chance(0.3) else 0.0
                    turn = heading + backwards + yard.uniform(-0.05, 0.05)
                    _car(yard, start + (bay + 0.5) * BAY_M, t + yard.uniform(-0.3, 0.3), turn)
    yard.line(0.5)


def tanks(yard: Yard) -> None:
    """A tank farm behind an earth wall on one side, a warehouse with lorries on the other."""
    farm = yard.length * yard.uniform(0.48, 0.6)
    yard.put("basin", farm / 2 + 1, yard.depth / 2, _ALONG, farm - 2, yard.depth - 3)
    columns, rows = (2, 2) if yard.chance(0.5) else (2, 3)
    pitch = (farm - 4) / columns, (yard.depth - 5) / rows
    diameter = min(pitch) - 1.8
    for column in range(columns):
        for row in range(rows):
            if yard.chance(0.92):
                s, t = 3 + (column + 0.5) * pitch[0], 2.5 + (row + 0.5) * pitch[1]
                size = diameter * yard.uniform(0.72, 1.0)
                yard.put("storage_tank", s, t, yard.uniform(0, 2 * math.pi), size, size)
    rest = yard.length - farm
    depth = yard.depth * yard.uniform(0.4, 0.55)
    yard.put("hall", farm + rest / 2, 2 + depth / 2, _ACROSS, depth, rest - 4)
    for s in np.arange(farm + 3.0, yard.length - 2.5, 4.2).tolist():
        if yard.chance(0.6):
            length = yard.uniform(8.5, 12.5)
            t = depth + 4 + length / 2 + yard.uniform(0, 1.5)
            if t + length / 2 < yard.depth - 1:
                yard.put("truck", s, t, _ACROSS * (1 if yard.chance(0.5) else -1), length, 2.6)


def airfield(yard: Yard) -> None:
    """Stands for aeroplanes on both sides of a taxiway, and helicopters on their circles."""
    middle, pitch = yard.depth / 2, 23.0
    yard.put("taxiway", yard.length / 2, middle, _ALONG, yard.length - 4, 4)
    count = max(int((yard.length - 2) // pitch), 1)
    for stand in range(count):
        for side in (-1, 1):
            s = (stand + 0.5) * yard.length / count
            t = middle + side * (middle / 2 + 1)
            room = min(yard.length / count, middle) - 3
            if yard.chance(0.36):
                yard.put("helipad", s, t, yard.uniform(0, 6), min(14.0, room), min(14.0, room))
                size = min(yard.uniform(10.5, 12.5), room)
                turn = yard.uniform(0, 2 * math.pi)
                yard.put("helicopter", s, t, turn, size, size * 0.9)
            elif yard.chance(0.85):
                length = min(yard.uniform(14.0, 20.0), room)
                turn = -side * _ACROSS + yard.uniform(-0.25, 0.25)
                yard.put("plane", s, t, turn, length, length * yard.uniform(0.92, 1.06))


def field(yard: Yard) -> None:
    """Crops with a few trees at the border."""
    for s in np.arange(4.0, yard.length - 4, 5.5).tolist():
        if yard.chance(0.4):
            size = yard.uniform(3.5, 6.5)
            yard.put("tree", s, 3.0 + yard.uniform(0, 1), yard.uniform(0, 6), size, size)


def park(yard: Yard) -> None:
    """Many trees."""
    yard.plant(int(yard.length * yard.depth / 38), low=3.0, high=8.0)


def water(yard: Yard) -> None:
    """A jetty with moored boats, or ships under way."""
    if yard.has_shore and yard.chance(0.6):
        _marina(yard)
        return
    for s in (0.25, 0.75):
        for t in (0.27, 0.73):
            if yard.chance(0.55):
                at = s * yard.length + yard.uniform(-2, 2), t * yard.depth + yard.uniform(-2, 2)
                room = min(at[0], yard.length - at[0], at[1], yard.depth - at[1])
                length = min(yard.uniform(10.0, 26.0), 2 * room - 3)
                heading = yard.uniform(0, 2 * math.pi)
                if yard.chance(0.5):
                    back = -(length * 0.5 + length * 0.3)
                    foam = at[0] + back * math.cos(heading), at[1] + back * math.sin(heading)
                    yard.put("wake", *foam, heading, length * 0.75, length * 0.3)
                yard.put("ship", *at, heading, length, _beam(length))


def _marina(yard: Yard) -> None:
    middle, length = yard.depth / 2, yard.length * yard.uniform(0.7, 0.92)
    yard.put("pier", length / 2, middle, _ALONG, length, 2.2)
    place = 3.5
    while place < length - 3:
        boat = yard.uniform(8.5, 13.5)
        beam = _beam(boat)
        for side in (-1, 1):
            if yard.chance(0.72):
                t = middle + side * (boat / 2 + 2.0)
                turn = side * _ACROSS * (1 if yard.chance(0.7) else -1)
                yard.put("ship", place, t, turn + yard.uniform(-0.05, 0.05), boat, beam)
        place += beam + yard.uniform(1.4, 2.4)


def _beam(length: float) -> float:
    """Width of a ship: small boats are stouter."""
    return 1.4 + 0.19 * length


def _car(yard: Yard, s: float, t: float, heading: float) -> None:
    yard.put("car", s, t, heading, yard.uniform(4.1, 4.9), yard.uniform(1.8, 1.98))


FILLERS: dict[Land, Callable[[Yard], None]] = {
    "homes": homes,
    "parking": parking,
    "tanks": tanks,
    "airfield": airfield,
    "field": field,
    "park": park,
    "water": water,
}
"""How each kind of land is filled."""
