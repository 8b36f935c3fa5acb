"""One typed preset for each row of the paper's tables, and light relatives for small machines."""

from __future__ import annotations

import difflib

from d2det.config import Preset
from d2det.presets.lite import LITE_PRESETS
from d2det.presets.paper import PAPER_PRESETS

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (*PAPER_PRESETS, *LITE_PRESETS)}
"""All presets by name, in the order of the paper."""


def get_preset(name: str) -> Preset:
    """Returns the preset called `name`; a ValueError names the nearest ones."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.4) or PRESETS
        raise ValueError(f"unknown preset {name!r}; did you mean {' or '.join(near)}?")
    return PRESETS[name]


__all__ = ["PRESETS", "Preset", "get_preset"]
