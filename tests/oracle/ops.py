"""Loads the official op cases: stored arrays, and inputs drawn from a counter-based generator."""

from __future__ import annotations

import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parent
SEED = 7


@cache
def _stored() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "oracle_ops.npz") as file:
        return dict(file)


def case(name: str) -> Tensor:
    """Returns a stored array as a fresh tensor."""
    return torch.from_numpy(_stored()[name].copy())


def drawn(name: str, shape: tuple[int, ...], loc: float, scale: float, seed: int = SEED) -> Tensor:
    """Returns the float32 input the official run drew for `name`."""
    key = (zlib.crc32(f"ops:{name}".encode()) + seed) & 0xFFFFFFFFFFFFFFFF
    raw = np.random.Philox(key=key).random_raw(int(np.prod(shape)))
    uniform = (raw >> np.uint64(40)).astype(np.float64) * 2.0**-24
    values = loc + scale * np.sqrt(3.0) * (2.0 * uniform - 1.0)
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def half_open(boxes: Tensor) -> Tensor:
    """Returns boxes whose last two of four final coordinates, inclusive before, are exclusive."""
    grown = boxes.clone()
    grown[..., -2:] += 1
    return grown
