"""Random numbers that belong to places of the plane.

Only integer arithmetic, additions and multiplications of single numbers: a pixel has the same value
whatever window it is computed in, and on any machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Positions = NDArray[np.floating[Any]]


def lattice(key: int, columns: NDArray[np.int64], rows: NDArray[np.int64]) -> Floats:
    """Returns numbers in [0, 1), a hash of (key, column, row) each; the arrays are broadcast."""
    x = columns.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    y = rows.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    z = x ^ y ^ np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def smooth(key: int, spacing: float, x: Positions, y: Positions) -> Floats:
    """Returns (Y, X) noise in [0, 1) at the crossings of columns x and rows y.

    Lattice values `spacing` apart, joined by smoothstep.
    """
    column, across = _split(x / spacing)
    row, down = _split(y / spacing)
    left, top = column.min(), row.min()
    columns, rows = np.arange(left, column.max() + 2), np.arange(top, row.max() + 2)
    values = lattice(key, columns[None, :], rows[:, None])
    upper, lower = values[row - top], values[row - top + 1]
    joined = upper + (lower - upper) * down[:, None]
    near, far = joined[:, column - left], joined[:, column - left + 1]
    noise: Floats = near + (far - near) * across[None, :]
    return noise


def smooth_at(key: int, spacing: float, x: Positions, y: Positions) -> Floats:
    """Returns the noise of `smooth` at the points (x, y), (P,) each."""
    column, across = _split(x / spacing)
    row, down = _split(y / spacing)
    near, far = (
        (upper := lattice(key, column + step, row))
        + (lattice(key, column + step, row + 1) - upper) * down
        for step in (0, 1)
    )
    return near + (far - near) * across


def _split(position: Positions) -> tuple[NDArray[np.int64], Floats]:
    """Lattice index below each position, and the smoothstep weight of the one above."""
    index = np.floor(position)
    t = position - index
    return index.astype(np.int64), (t * t * (3 - 2 * t)).astype(np.float32)
