"""`d2det presets`: what can be trained, converted and compared with the paper."""

from __future__ import annotations

import json
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from d2det.config import Config
from d2det.presets import PRESETS, get_preset


class PresetsCommand(Config):
    """Lists the presets with the paper's figures, or shows all values of one.

    Example: d2det presets d2det_r50
    """

    name: tyro.conf.Positional[str | None] = None
    """Preset to show in full, as JSON."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print all presets as JSON."""


def run(options: PresetsCommand) -> int:
    """Prints the list, or one preset, and returns the exit code.

    Raises:
        ValueError: No such preset.
    """
    if options.name is not None:
        print(get_preset(options.name).model_dump_json(indent=2))
    elif options.as_json:
        print(json.dumps([preset.model_dump(mode="json") for preset in PRESETS.values()]))
    else:
        Console().print(_table())
    return 0


def _table() -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("preset", no_wrap=True)
    table.add_column("input", no_wrap=True)
    table.add_column("what it is", ratio=3)
    table.add_column("figure in the paper or its code", ratio=3)
    for preset in PRESETS.values():
        size = f"{preset.input.short_side} x {preset.input.long_side}"
        table.add_row(preset.name, size, preset.summary, preset.paper)
    return table
