"""Random numbers that depend on what they are for, never on who draws them or when.

A key is a 63-bit hash of (seed, epoch, image id, purpose, ...). Numbers are a pure function of
(key, index), so a sample's augmentation and its sampled RoIs are the same on any worker, in any
batch slot, before and after a restart.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

_MASK_53 = (1 << 53) - 1


def key(*parts: int | str) -> int:
    """Returns a 63-bit key of `parts`; different parts give unrelated keys."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """Returns a counter-based NumPy generator for host-side choices such as augmentation."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))


def uniform(index: Tensor, keys: Tensor) -> Tensor:
    """Returns float64 numbers in [0, 1): each a hash of a key and an index, (...) int64 both.

    The shapes are broadcast. The same values on every device: integer arithmetic only (the
    splitmix64 finaliser of Steele, Lea and Flood, OOPSLA 2014). Float64 keeps 53 bits, so ties are
    negligible.
    """
    golden, first, second = (
        _signed(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
    )
    z = (index + 1) * golden + keys
    z = (z ^ _shift_right(z, 30)) * first
    z = (z ^ _shift_right(z, 27)) * second
    z = z ^ _shift_right(z, 31)
    return (_shift_right(z, 11) & _MASK_53).to(torch.float64) * 2.0**-53


def _signed(value: int) -> int:
    """The int64 with the bit pattern of the unsigned `value`."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: torch shifts int64 arithmetically, so the copied sign bits are cleared."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
