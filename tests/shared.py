"""Where the real pictures and oracle numbers lie that some tests compare against."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def shared_dir(*parts: str) -> Path:
    """Returns shared/PARTS, or skips the calling test (or module) with the reason.

    The folder is $D2DET_SHARED where that is set, else `shared` beside the repository.
    """
    base = Path(os.environ.get("D2DET_SHARED", ROOT.parent / "shared"))
    path = base.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {path}; set D2DET_SHARED", allow_module_level=True)
    return path
