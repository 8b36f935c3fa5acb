"""The ground seen from above: land, water and streets, pixel by pixel.

Letters: H x W pixels of the window, B blocks it touches, S streets it touches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2det import rng
from d2det.data.synthetic import noise
from d2det.data.synthetic.plane import PAVEMENT_M, Axis, Block, Land, Plane

Floats = NDArray[np.floating[Any]]
Places = NDArray[np.int64]

_COLOURS: dict[Land, tuple[tuple[int, int, int], ...]] = {
    "homes": ((112, 134, 82), (104, 124, 76), (124, 136, 92)),
    "parking": ((112, 112, 114), (98, 99, 103), (122, 119, 115)),
    "tanks": ((160, 154, 144), (146, 142, 136), (168, 158, 140)),
    "airfield": ((154, 156, 156), (142, 145, 148), (164, 162, 156)),
    "field": ((158, 142, 92), (118, 138, 72), (142, 120, 84), (170, 158, 102), (98, 120, 64)),
    "park": ((94, 118, 68), (86, 110, 62), (102, 124, 76)),
    "water": ((50, 84, 102),),
}
"""Mean colours (R, G, B) of each kind of land."""
_ROUGHNESS: dict[Land, tuple[float, float]] = {
    "homes": (18, 14),
    "parking": (10, 5),
    "tanks": (16, 8),
    "airfield": (10, 4),
    "field": (16, 10),
    "park": (22, 18),
    "water": (10, 5),
}
"""How far large and small patches differ from the mean colour, in grey levels."""
_FURROW_M, _FURROW_SHADE = 1.8, 11.0
_SLAB_M, _JOINT_M, _JOINT_SHADE = 7.5, 0.12, -20.0
_ASPHALT = np.array((94, 94, 97), np.float32)
_PAVEMENT = np.array((158, 154, 146), np.float32)
_MARKING = np.array((222, 220, 210), np.float32)
_LINE_M, _DASH_M, _STRIPE_M = 0.3, 6.0, 1.3
_CROSSWALK_M = (0.8, 3.4)
"""Where the zebra crossing lies, measured from the edge of the crossing street."""


class Ground:
    """Draws the ground of windows of one plane."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._keys = {name: rng.key(plane.seed, "ground", name) for name in ("large", "small")}

    def draw(self, x: int, y: int, width: int, height: int) -> Floats:
        """Returns the ground of a window of pixels as (H, W, 3) float32 RGB in 0..255."""
        plane, metre = self._plane, self._plane.pixels_per_metre
        xs, ys = np.arange(x, x + width) + 0.5, np.arange(y, y + height) + 0.5
        u, v = plane.grid(xs, ys)
        large = noise.smooth(self._keys["large"], 6.0 * metre, xs, ys) - 0.5
        small = noise.smooth(self._keys["small"], 0.7 * metre, xs, ys) - 0.5
        across, down = _nearest_streets(plane, "u", u), _nearest_streets(plane, "v", v)
        canvas = self._land(u, v, across, down, large, small)
        self._draw_streets(canvas, u, v, across, down, large * 8 + small * 8)
        return canvas

    def _land(
        self,
        u: Floats,
        v: Floats,
        across: _Streets,
        down: _Streets,
        large: Floats,
        small: Floats,
    ) -> Floats:
        blocks = [self._plane.block(i, j) for j in down.numbers for i in across.numbers]
        place = down.interval * len(across.numbers) + across.interval
        roughness = np.array([_ROUGHNESS[block.land] for block in blocks], np.float32) * 2
        shade = large * roughness[place, 0] + small * roughness[place, 1]
        shade += self._pattern(blocks, place, u, v)
        colours = np.array([self._colour(block) for block in blocks], np.float32)
        land: Floats = colours[place] + shade[..., None]
        return land

    def _colour(self, block: Block) -> tuple[float, float, float]:
        random = rng.generator(self._plane.seed, "colour", block.i, block.j)
        choices = _COLOURS[block.land]
        red, green, blue = choices[int(random.integers(len(choices)))]
        shift = 0.0 if block.land == "water" else float(random.uniform(-9, 9))
        return red + shift, green + shift, blue + shift

    def _pattern(self, blocks: list[Block], place: Places, u: Floats, v: Floats) -> Floats:
        """Furrows of fields, and the joints between the slabs of airfields."""
        waves = np.zeros((len(blocks), 2), np.float64)
        for number, block in enumerate(blocks):
            if block.land == "field":
                turn = rng.generator(self._plane.seed, "furrows", block.i, block.j).random()
                waves[number, int(turn < 0.5)] = 1 / _FURROW_M
        is_field = np.array([block.land == "field" for block in blocks])[place]
        phase = u * waves[place, 0] + v * waves[place, 1]
        furrows = (np.abs(phase - np.floor(phase) - 0.5) * 4 - 1) * is_field * _FURROW_SHADE
        is_slab = np.array([block.land == "airfield" for block in blocks])[place]
        joint = np.minimum(_to_multiple(u, _SLAB_M), _to_multiple(v, _SLAB_M)) < _JOINT_M
        pattern: Floats = (furrows + (is_slab & joint) * _JOINT_SHADE).astype(np.float32)
        return pattern

    def _draw_streets(
        self,
        canvas: Floats,
        u: Floats,
        v: Floats,
        across: _Streets,
        down: _Streets,
        shade: Floats,
    ) -> None:
        metre = self._plane.pixels_per_metre
        layers = [
            _street_layers(self._plane, "u", across, down, along=v, metre=metre),
            _street_layers(self._plane, "v", down, across, along=u, metre=metre),
        ]
        for colour, covers in zip(
            (_PAVEMENT, _ASPHALT, _MARKING), zip(*layers, strict=True), strict=True
        ):
            cover = np.maximum(*covers)
            where = cover > 0
            paint = colour + shade[where][:, None]
            canvas[where] += (paint - canvas[where]) * cover[where][:, None]


@dataclass(frozen=True)
class _Streets:
    """The streets across one axis, seen from every pixel.

    numbers: S streets.  interval: (H, W) place of the street below the pixel's coordinate, which
    is the place of its block.  nearest: (H, W) place of the nearest street.
    offset: (H, W) metres from its middle.  half: (H, W) half its width.
    """

    numbers: range
    interval: Places
    nearest: Places
    offset: Floats
    half: Floats


def _nearest_streets(plane: Plane, axis: Axis, position: Floats) -> _Streets:
    numbers = plane.streets(axis, float(position.min()), float(position.max()))
    middles = np.array([plane.street(axis, number) for number in numbers])
    halves = np.array([plane.half_width(axis, number) for number in numbers], np.float32)
    interval = np.searchsorted(middles, position) - 1
    nearest = np.searchsorted((middles[1:] + middles[:-1]) / 2, position)
    offset = (position - middles[nearest]).astype(np.float32)
    return _Streets(numbers, interval, nearest, offset, halves[nearest])


def _street_layers(
    plane: Plane,
    axis: Axis,
    streets: _Streets,
    crossing: _Streets,
    *,
    along: Floats,
    metre: float,
) -> tuple[Floats, Floats, Floats]:
    """How much of each pixel, (H, W) in 0..1, is pavement, carriageway and paint."""
    is_dry = np.array(
        [[plane.is_dry(axis, n, m) for m in crossing.numbers] for n in streets.numbers]
    )
    is_quay = np.array(
        [[plane.is_quay(axis, n, m) for m in crossing.numbers] for n in streets.numbers]
    )
    place = streets.nearest, crossing.interval
    distance, has_street = np.abs(streets.offset), (streets.half > 0) & is_dry[place]
    pavement = _cover(streets.half + PAVEMENT_M - distance, metre) * (has_street | is_quay[place])
    carriageway = _cover(streets.half - distance, metre) * has_street

    gap = np.where(crossing.half > 0, np.abs(crossing.offset) - crossing.half, np.float32(1e3))
    lane = np.where(streets.half > 5, np.abs(distance - streets.half / 2), distance)
    dashes = _cover(_LINE_M / 2 - lane, metre) * (_fraction(along, _DASH_M) < 0.5)
    middle = _cover(_LINE_M / 2 - distance, metre) * (streets.half > 5)
    lines = np.maximum(dashes, middle) * (gap > _CROSSWALK_M[1] + 1)
    zebra = (gap > _CROSSWALK_M[0]) & (gap < _CROSSWALK_M[1]) & (distance < streets.half - 0.3)
    stripes = zebra & (_fraction(streets.offset, _STRIPE_M) < 0.5)
    return pavement, carriageway, np.maximum(lines, stripes) * has_street


def _cover(inside_m: Floats, metre: float) -> Floats:
    """Share of a pixel that lies inside an edge, given the distance to the edge in metres."""
    cover: Floats = np.clip(inside_m * np.float32(metre) + np.float32(0.5), 0, 1)
    return cover


def _fraction(position: Floats, period: float) -> Floats:
    turns = position / period
    fraction: Floats = turns - np.floor(turns)
    return fraction


def _to_multiple(position: Floats, period: float) -> Floats:
    """Distance to the nearest multiple of `period`."""
    distance: Floats = period * np.abs(_fraction(position + period / 2, period) - 0.5)
    return distance
