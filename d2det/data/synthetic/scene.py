"""Scenes: rectangles of the plane as pictures with their objects.

Letters: H x W pixels of a window, G objects in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from d2det import rng
from d2det.data.synthetic import noise, scenery, vehicles
from d2det.data.synthetic.ground import Ground
from d2det.data.synthetic.layout import items_between
from d2det.data.synthetic.plane import Plane
from d2det.data.synthetic.shapes import Builder, Model
from d2det.data.synthetic.sprites import Sprite, draw, draw_shadow
from d2det.data.synthetic.yards import Item
from d2det.structures import Category

_FINDABLE: dict[str, Builder] = {
    "car": vehicles.car,
    "truck": vehicles.truck,
    "bus": vehicles.bus,
    "plane": vehicles.plane,
    "helicopter": vehicles.helicopter,
    "ship": vehicles.ship,
    "storage_tank": vehicles.storage_tank,
    "swimming_pool": vehicles.swimming_pool,
}
_FLAT: dict[str, Builder] = {
    "slab": scenery.slab,
    "basin": scenery.basin,
    "bays": scenery.bays,
    "helipad": scenery.helipad,
    "taxiway": scenery.taxiway,
    "wake": scenery.wake,
    "pier": scenery.pier,
}
_TALL: dict[str, Builder] = {
    "house": scenery.house,
    "hall": scenery.hall,
    "tree": scenery.tree,
}
_STOREYS = (_FLAT, _FINDABLE, _TALL)
"""Drawn in this order: only trees and roofs hide objects."""
_BUILDERS = _FLAT | _FINDABLE | _TALL
_LABELS = {name: label for label, name in enumerate(_FINDABLE)}
CATEGORIES = tuple(Category(number, name) for number, name in enumerate(_FINDABLE, start=1))
"""What is annotated; the place is the label."""

MARGIN_M = 34.0
"""Things farther from a window than this neither reach into it nor touch what does."""
MIN_VISIBLE = 0.1
MIN_VISIBLE_PX = 16
"""Objects of which less is seen are not annotated, as people would not."""
_TREE_GAP = 0.2
"""Trees whose middle is nearer to something than this share of their diameter are left out."""
_LONGEST_SHADOW_M = 10.0
"""The highest things (trees of 8 m) times the longest shadow of a metre, and a little more."""
_TILE_PX = 1024
"""Whole scenes are drawn in windows of this size: drawing takes some 100 bytes a pixel."""
_SHADOW = 0.42
"""Share of the light that a full shadow takes."""


@dataclass(frozen=True)
class SceneObject:
    """What can be seen of one object.

    label: place in CATEGORIES.
    x, y: upper left pixel of its mask in the scene.
    mask: (h, w) bool, its visible pixels; the first and last rows and columns are not empty.
    """

    label: int
    x: int
    y: int
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """A picture of `width` x `height` pixels that is drawn on demand, whole or in windows."""

    seed: int
    width: int
    height: int
    pixels_per_metre: float = 9.0

    def window(
        self, x: int, y: int, width: int, height: int
    ) -> tuple[NDArray[np.uint8], list[SceneObject]]:
        """Returns a window, (H, W, 3) uint8 RGB, and the objects whose middle lies in it.

        An object is given once, by one of the windows that tile a scene, and whole: its mask may
        reach into the next window, but ends at the border of the scene.
        """
        things = self._things(x, y, width, height)
        canvas = self._ground.draw(x, y, width, height)
        near = [thing for thing in things if thing.may_reach(x, y, width, height)]
        for storey in _STOREYS:
            members = [thing for thing in near if thing.item.kind in storey]
            self._shade(canvas, members, x, y)
            for thing in members:
                _paste(canvas, thing.sprite, x, y)
        return self._expose(canvas, x, y), self._objects(things, x, y, width, height)

    def whole(self) -> tuple[NDArray[np.uint8], list[SceneObject]]:
        """Returns the whole scene, (height, width, 3) uint8 RGB, and all its objects."""
        picture = np.empty((self.height, self.width, 3), np.uint8)
        objects = []
        for y in range(0, self.height, _TILE_PX):
            for x in range(0, self.width, _TILE_PX):
                size = min(_TILE_PX, self.width - x), min(_TILE_PX, self.height - y)
                tile, found = self.window(x, y, *size)
                picture[y : y + size[1], x : x + size[0]] = tile
                objects += found
        return picture, objects

    @cached_property
    def _plane(self) -> Plane:
        return Plane(self.seed, self.pixels_per_metre)

    @cached_property
    def _ground(self) -> Ground:
        return Ground(self._plane)

    @cached_property
    def _sun(self) -> tuple[float, float]:
        """Metres of shadow along x and y that a metre of height throws."""
        random = rng.generator(self.seed, "sun")
        angle, length = random.uniform(0, 2 * math.pi), random.uniform(0.45, 0.95)
        return float(length * math.cos(angle)), float(length * math.sin(angle))

    def _things(self, x: int, y: int, width: int, height: int) -> list[_Thing]:
        """Everything near a window, in drawing order, with its place in pixels."""
        margin = MARGIN_M * self.pixels_per_metre
        low, high = (x - margin, y - margin), (x + width + margin, y + height + margin)
        steps = (np.linspace(low[axis], high[axis], 5) for axis in (0, 1))
        u, v = self._plane.grid(*steps)
        items = items_between(self._plane, (u.min(), u.max()), (v.min(), v.max()))
        middle_u, middle_v = np.array([(item.u, item.v) for item in items]).T
        heading = np.array([item.heading for item in items])
        px, py = self._plane.pixels(middle_u, middle_v)
        qx, qy = self._plane.pixels(middle_u + np.cos(heading), middle_v + np.sin(heading))
        turn = np.arctan2(qy - py, qx - px)
        near = (px > low[0]) & (px < high[0]) & (py > low[1]) & (py < high[1])
        things = [
            _Thing(items[k], float(px[k]), float(py[k]), float(turn[k]), self.pixels_per_metre)
            for k in np.flatnonzero(near).tolist()
        ]
        return _without_crowding_trees(things)

    def _shade(self, canvas: NDArray[np.float32], things: list[_Thing], x: int, y: int) -> None:
        shade = np.zeros(canvas.shape[:2], np.uint8)
        for thing in things:
            length = thing.model.height_m * self.pixels_per_metre
            if length == 0:
                continue
            shadow = draw_shadow(thing.sprite, (self._sun[0] * length, self._sun[1] * length))
            if (spot := _overlap(shadow, canvas, x, y)) is not None:
                there, here = spot
                np.maximum(shade[there], shadow.cover[here], out=shade[there])
        where = shade > 0
        canvas[where] *= 1 - shade[where][:, None] * np.float32(_SHADOW / 255)

    def _expose(self, canvas: NDArray[np.float32], x: int, y: int) -> NDArray[np.uint8]:
        """The light of the day, and the grain of the camera."""
        random = rng.generator(self.seed, "light")
        light = random.uniform(0.88, 1.08) * random.uniform(0.97, 1.03, 3)
        height, width = canvas.shape[:2]
        columns, rows = np.arange(x, x + width), np.arange(y, y + height)
        grain = noise.lattice(rng.key(self.seed, "grain"), columns[None, :], rows[:, None])
        exposed = canvas * light.astype(np.float32) + ((grain - np.float32(0.5)) * 11)[..., None]
        return np.clip(exposed + np.float32(0.5), 0, 255).astype(np.uint8)

    def _objects(
        self, things: list[_Thing], x: int, y: int, width: int, height: int
    ) -> list[SceneObject]:
        """The objects whose middle, moved into the scene, lies in the window."""
        tall = [thing for thing in things if thing.item.kind in _TALL]
        objects = []
        for thing in things:
            if thing.item.kind not in _FINDABLE:
                continue
            at_x = min(max(thing.x, 0), self.width - 1)
            at_y = min(max(thing.y, 0), self.height - 1)
            if x <= at_x < x + width and y <= at_y < y + height:
                found = self._visible(thing, tall)
                objects += [found] if found is not None else []
        return objects

    def _visible(self, thing: _Thing, tall: list[_Thing]) -> SceneObject | None:
        sprite = thing.sprite
        mask = sprite.mask.copy()
        whole = int(mask.sum())
        ys, xs = (
            np.arange(n) + start for n, start in zip(mask.shape, (sprite.y, sprite.x), strict=True)
        )
        mask &= ((ys >= 0) & (ys < self.height))[:, None] & ((xs >= 0) & (xs < self.width))[None, :]
        for other in tall:
            if thing.may_touch(other) and (
                spot := _overlap(other.sprite, mask, sprite.x, sprite.y)
            ):
                there, here = spot
                mask[there] &= ~other.sprite.mask[here]
        if mask.sum() < max(MIN_VISIBLE_PX, MIN_VISIBLE * whole):
            return None
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        return SceneObject(
            label=_LABELS[thing.item.kind],
            x=sprite.x + int(columns[0]),
            y=sprite.y + int(rows[0]),
            mask=mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1],
        )


@dataclass(frozen=True)
class _Thing:
    """An item at its place in the picture: pixels of its middle, direction of its front."""

    item: Item
    x: float
    y: float
    heading: float
    pixels_per_metre: float

    @cached_property
    def model(self) -> Model:
        """How it looks."""
        build = _BUILDERS[self.item.kind]
        return build(
            self.item.length,
            self.item.width,
            np.random.Generator(np.random.Philox(key=self.item.key)),
        )

    @cached_property
    def sprite(self) -> Sprite:
        """Its pixels."""
        return draw(self.model, self.x, self.y, self.heading, self.pixels_per_metre)

    @property
    def reach(self) -> float:
        """Pixels from its middle to its farthest corner."""
        return math.hypot(self.item.length, self.item.width) / 2 * self.pixels_per_metre

    def may_reach(self, x: int, y: int, width: int, height: int) -> bool:
        """Whether it or its shadow may be seen in a window."""
        reach = self.reach + _LONGEST_SHADOW_M * self.pixels_per_metre
        return -reach < self.x - x < width + reach and -reach < self.y - y < height + reach

    def may_touch(self, other: _Thing) -> bool:
        """Whether their surrounding circles meet."""
        return math.hypot(self.x - other.x, self.y - other.y) <= self.reach + other.reach + 2


def _without_crowding_trees(things: list[_Thing]) -> list[_Thing]:
    """Leaves out trees that stand on something, or hide much of it."""
    solid = [thing for thing in things if thing.item.kind not in ("tree", "basin")]
    if not solid:
        return things
    x, y, heading = np.array([(t.x, t.y, t.heading) for t in solid]).T
    half_length, half_width = np.array([(t.item.length, t.item.width) for t in solid]).T / 2
    kept = []
    for thing in things:
        if thing.item.kind == "tree":
            metre = thing.pixels_per_metre
            dx, dy = (thing.x - x) / metre, (thing.y - y) / metre
            along = np.abs(dx * np.cos(heading) + dy * np.sin(heading)) - half_length
            across = np.abs(dy * np.cos(heading) - dx * np.sin(heading)) - half_width
            distance = np.hypot(np.maximum(along, 0), np.maximum(across, 0))
            if distance.min() < _TREE_GAP * thing.item.length:
                continue
        kept.append(thing)
    return kept


def _overlap(
    sprite: Sprite, canvas: NDArray, x: int, y: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """Where a sprite lies on a canvas whose corner is at (x, y), and which part of it that is."""
    there, here = [], []
    for start, size, limit in zip(
        (sprite.y - y, sprite.x - x), sprite.cover.shape, canvas.shape[:2], strict=True
    ):
        low, high = max(start, 0), min(start + size, limit)
        if low >= high:
            return None
        there.append(slice(low, high))
        here.append(slice(low - start, high - start))
    return (there[0], there[1]), (here[0], here[1])


def _paste(canvas: NDArray[np.float32], sprite: Sprite, x: int, y: int) -> None:
    spot = _overlap(sprite, canvas, x, y)
    if spot is not None:
        there, here = spot
        rest = 1 - sprite.cover[here][..., None] * np.float32(1 / 255)
        canvas[there] = canvas[there] * rest + sprite.colour[here]
