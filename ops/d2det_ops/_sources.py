"""The digest of the op sources, shared by setup.py and the package (standard library only)."""

from __future__ import annotations

import hashlib
from pathlib import Path

SUFFIXES = frozenset({".h", ".cpp", ".cu", ".cuh"})


def csrc_digest(csrc: Path) -> str:
    """Returns 16 hex digits that change with any C++ or CUDA source under `csrc`."""
    return _digest(csrc, sorted(p for p in csrc.rglob("*") if p.suffix in SUFFIXES))


def python_digest(package: Path) -> str:
    """Returns 16 hex digits that change with any Python source of the ops package."""
    return _digest(package, sorted(package.glob("*.py")))


def _digest(root: Path, files: list[Path]) -> str:
    state = hashlib.sha256()
    for file in files:
        state.update(str(file.relative_to(root)).encode() + b"\0")
        state.update(file.read_bytes() + b"\0")
    return state.hexdigest()[:16]
