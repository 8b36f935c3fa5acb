"""The things to be found: one builder a class, each from its size and its own random numbers."""

from __future__ import annotations

import math

import numpy as np

from d2det.data.synthetic.shapes import (
    Colour,
    Model,
    Outline,
    ellipse,
    lighter,
    mirrored,
    moved,
    profile,
    rectangle,
    rounded,
    turned,
)

_GLASS: Colour = (38, 44, 54)
_RUBBER: Colour = (30, 30, 32)


def car(length: float, width: float, random: np.random.Generator) -> Model:
    """Returns a car; bonnet, windows and roof tell its front."""
    paint = _pick(random, _CAR_COLOURS)
    cabin = float(random.uniform(0.44, 0.56)) * length
    back = float(random.uniform(-0.14, -0.06)) * length
    lamps = [rectangle(0.3, 0.42, x=length / 2 - 0.22, y=s * width * 0.33) for s in (1, -1)]
    tails = [rectangle(0.24, 0.42, x=-length / 2 + 0.2, y=s * width * 0.33) for s in (1, -1)]
    return Model(
        (
            (rounded(length, width, 0.75), paint),
            (rounded(length * 0.94, width * 0.86, 0.7), lighter(paint, 1.1)),
            *((lamp, (240, 238, 220)) for lamp in lamps),
            *((tail, (170, 30, 30)) for tail in tails),
            (rounded(cabin, width * 0.84, 0.5, x=back), _GLASS),
            (rounded(cabin * 0.6, width * 0.74, 0.3, x=back - 0.1), lighter(paint, 1.16)),
        ),
        height_m=1.5,
    )


def truck(length: float, width: float, random: np.random.Generator) -> Model:
    """Returns a lorry: a cab and a long box or an open load."""
    cab = 2.3
    paint, box = _pick(random, _CAB_COLOURS), _pick(random, _BOX_COLOURS)
    box_length = length - cab - 0.5
    middle = -length / 2 + box_length / 2
    ribs = np.arange(middle - box_length / 2 + 1.2, middle + box_length / 2 - 0.6, 1.6).tolist()
    layers = (
        (rectangle(length - 0.4, width * 0.5), _RUBBER),
        (rounded(cab, width * 0.96, 0.35, x=length / 2 - cab / 2), paint),
        (rectangle(0.6, width * 0.8, x=length / 2 - 0.55), _GLASS),
        (rectangle(0.9, width * 0.7, x=length / 2 - 1.5), lighter(paint, 1.15)),
        (rectangle(box_length, width, x=middle), lighter(box, 0.86)),
        (rectangle(box_length - 0.3, width - 0.34, x=middle), box),
        *((rectangle(0.2, width - 0.34, x=rib), lighter(box, 0.92)) for rib in ribs),
    )
    return Model(layers, height_m=3.4)


def bus(length: float, width: float, random: np.random.Generator) -> Model:
    """Returns a bus: a long coloured roof with hatches."""
    paint = _pick(random, _BUS_COLOURS)
    hatches = np.linspace(-0.34, 0.28, 3) * length
    return Model(
        (
            (rounded(length, width, 0.5), lighter(paint, 0.8)),
            (rounded(length * 0.97, width * 0.84, 0.4), paint),
            (rectangle(0.7, width * 0.84, x=length / 2 - 0.55), _GLASS),
            (rectangle(length * 0.8, width * 0.2, x=-0.4), lighter(paint, 1.2)),
            *((rounded(1.5, width * 0.52, 0.2, x=float(x)), (214, 214, 210)) for x in hatches),
        ),
        height_m=3.2,
    )


def plane(length: float, width: float, random: np.random.Generator) -> Model:
    """Returns an aeroplane with swept wings; width is its span."""
    paint, accent = _pick(random, _PLANE_COLOURS), _pick(random, _ACCENTS)
    body = length * 0.115
    sweep = float(random.uniform(0.1, 0.24)) * length
    root = float(random.uniform(0.2, 0.26)) * length
    wing = np.array(
        [
            (0.12 * length, 0),
            (0.12 * length - sweep, width / 2),
            (0.12 * length - sweep - 0.3 * root, width / 2),
            (0.12 * length - root - 0.1 * sweep, 0),
        ]
    )
    tail = moved(wing * (0.42, 0.38), -0.44 * length, 0)
    fuselage = profile(
        [
            (0.5 * length, 0.02 * length),
            (0.46 * length, 0.32 * body),
            (0.4 * length, 0.48 * body),
            (-0.2 * length, 0.5 * body),
            (-0.5 * length, 0.12 * body),
        ]
    )
    engine = rounded(0.13 * length, 0.05 * length, 0.3, x=0.05 * length, y=0.2 * width)
    shade = lighter(paint, 0.9)
    return Model(
        (
            *((side, shade) for side in (tail, mirrored(tail))),
            *((side, (112, 114, 120)) for side in (engine, mirrored(engine))),
            *((side, lighter(paint, 0.95)) for side in (wing, mirrored(wing))),
            *((side * (0.97, 1), accent) for side in _tips(wing, width)),
            (fuselage, lighter(paint, 0.88)),
            (fuselage * (0.98, 0.62), paint),
            (rectangle(0.17 * length, 0.016 * length, x=-0.42 * length), accent),
            (rounded(0.04 * length, 0.55 * body, 0.2, x=0.44 * length), _GLASS),
        ),
        height_m=3.0,
    )


def _tips(wing: Outline, span: float) -> tuple[Outline, Outline]:
    """The outer tenth of both wings."""
    front, outer_front, outer_back, back = wing
    inner_front = front + (outer_front - front) * 0.9
    inner_back = back + (outer_back - back) * 0.9
    tip = np.array([inner_front, outer_front, outer_back, inner_back])
    return tip, mirrored(tip)


def helicopter(length: float, width: float, random: np.random.Generator) -> Model:
    """Returns a helicopter; width is the diameter of its rotor."""
    paint, accent = _pick(random, _HELICOPTER_COLOURS), _pick(random, _ACCENTS)
    start = float(random.uniform(0, math.pi / 2))
    nose = 0.5 * length - 0.22 * length
    blade = rectangle(width / 2, 0.42, x=width / 4)
    blades = [moved(turned(blade, start + n * math.pi / 2), nose, 0) for n in range(4)]
    return Model(
        (
            (rectangle(0.56 * length, 0.5, x=-0.22 * length), lighter(paint, 0.85)),
            (rectangle(0.5, 2.2, x=-0.46 * length), accent),
            (rectangle(0.2, 2.6, x=-0.49 * length, y=0.3), _RUBBER),
            (ellipse(0.46 * length, 2.1, x=nose), paint),
            (ellipse(0.3 * length, 1.3, x=nose - 0.04 * length), lighter(paint, 1.15)),
            (ellipse(0.12 * length, 1.5, x=nose + 0.15 * length), _GLASS),
            *((outline, (64, 66, 70)) for outline in blades),
            (ellipse(0.9, 0.9, x=nose), _RUBBER),
        ),
        height_m=2.6,
    )


def ship(length: float, width: float, random: np.random.Generator) -> Model:
    """Returns a boat, or from 18 m on a freighter with containers."""
    hull, deck = _pick(random, _HULL_COLOURS), _pick(random, _DECK_COLOURS)
    outline = profile(
        [
            (0.5 * length, 0.02 * width),
            (0.36 * length, 0.3 * width),
            (0.18 * length, 0.47 * width),
            (-0.3 * length, 0.5 * width),
            (-0.5 * length, 0.38 * width),
        ]
    )
    layers = [(outline, hull), (outline * (0.94, 0.78), deck)]
    if length > 18:
        layers += _containers(length, width, random)
        layers.append((rectangle(0.1 * length, 0.7 * width, x=-0.38 * length), (236, 236, 232)))
        layers.append((rectangle(0.03 * length, 0.6 * width, x=-0.345 * length), _GLASS))
    else:
        layers.append(
            (rounded(0.34 * length, 0.56 * width, 0.5, x=-0.08 * length), (238, 238, 234))
        )
        layers.append((rounded(0.07 * length, 0.5 * width, 0.2, x=0.07 * length), _GLASS))
        layers.append((rectangle(0.1 * length, 0.4 * width, x=-0.38 * length), lighter(deck, 0.8)))
    return Model(tuple(layers), height_m=2.2 if length > 18 else 1.4)


def _containers(
    length: float, width: float, random: np.random.Generator
) -> list[tuple[Outline, Colour]]:
    bays = np.arange(-0.24 * length, 0.26 * length, 3.1)
    sides = (-0.18 * width, 0.18 * width)
    return [
        (rectangle(2.7, 0.33 * width, x=float(x), y=y), _pick(random, _CONTAINER_COLOURS))
        for x in bays
        for y in sides
    ]


def storage_tank(length: float, width: float, random: np.random.Generator) -> Model:
    """Returns a round tank of diameter `length` with a ring, a vent and a stair."""
    paint = _pick(random, _TANK_COLOURS)
    vent = length * 0.3
    return Model(
        (
            (ellipse(length, length), lighter(paint, 0.72)),
            (ellipse(length * 0.95, length * 0.95), lighter(paint, 0.94)),
            (ellipse(length * 0.8, length * 0.8), paint),
            (ellipse(length * 0.76, length * 0.76), lighter(paint, 0.97)),
            (rectangle(length * 0.42, 0.35, x=length * 0.25), lighter(paint, 0.66)),
            (ellipse(0.9, 0.9, x=-vent * 0.6, y=vent * 0.5), lighter(paint, 0.6)),
        ),
        height_m=float(random.uniform(4.5, 7.0)),
    )


def swimming_pool(length: float, width: float, random: np.random.Generator) -> Model:
    """Returns the water of a pool, square or rounded."""
    water = _pick(random, _POOL_COLOURS)
    radius = float(random.choice([0.3, 1.0, 2.0]))
    steps = [rectangle(0.25, width * 0.5, x=length / 2 - 0.5 - 0.45 * n) for n in range(2)]
    return Model(
        (
            (rounded(length, width, radius), lighter(water, 0.86)),
            (rounded(length - 0.5, width - 0.5, radius), water),
            (ellipse(length * 0.5, width * 0.4, x=-length * 0.15), lighter(water, 1.07)),
            *((step, lighter(water, 1.2)) for step in steps),
        )
    )


def _pick(random: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    """One of the colours, a little lighter or darker."""
    return lighter(colours[int(random.integers(len(colours)))], float(random.uniform(0.92, 1.06)))


_CAR_COLOURS: tuple[Colour, ...] = (
    (222, 222, 220), (238, 238, 236), (60, 62, 66), (34, 36, 40), (140, 144, 148), (172, 174, 176),
    (150, 34, 36), (42, 66, 120), (60, 96, 150), (120, 98, 70), (54, 92, 70), (206, 176, 60),
)  # fmt: skip
_CAB_COLOURS: tuple[Colour, ...] = (
    (224, 224, 222), (160, 40, 38), (46, 78, 140), (220, 150, 40), (70, 110, 74),
)  # fmt: skip
_BOX_COLOURS: tuple[Colour, ...] = (
    (232, 232, 228), (204, 206, 208), (196, 170, 130), (120, 150, 186), (176, 88, 70),
)  # fmt: skip
_BUS_COLOURS: tuple[Colour, ...] = (
    (226, 176, 44), (192, 50, 44), (226, 226, 222), (66, 132, 92), (70, 110, 170),
)  # fmt: skip
_PLANE_COLOURS: tuple[Colour, ...] = ((244, 244, 242), (230, 234, 238), (214, 216, 220))
_HELICOPTER_COLOURS: tuple[Colour, ...] = (
    (198, 60, 44), (232, 196, 56), (60, 90, 140), (228, 228, 224), (84, 96, 70),
)  # fmt: skip
_ACCENTS: tuple[Colour, ...] = ((178, 44, 44), (40, 70, 140), (220, 150, 50), (50, 110, 90))
_HULL_COLOURS: tuple[Colour, ...] = (
    (236, 236, 232), (140, 52, 44), (44, 56, 82), (60, 64, 66), (222, 218, 204),
)  # fmt: skip
_DECK_COLOURS: tuple[Colour, ...] = ((196, 172, 134), (206, 204, 198), (168, 140, 104))
_CONTAINER_COLOURS: tuple[Colour, ...] = (
    (178, 70, 54), (60, 98, 150), (214, 160, 62), (84, 130, 96), (186, 188, 190),
)  # fmt: skip
_TANK_COLOURS: tuple[Colour, ...] = ((232, 232, 228), (220, 214, 200), (198, 202, 204))
_POOL_COLOURS: tuple[Colour, ...] = ((74, 176, 204), (92, 196, 214), (64, 156, 196))
