"""`d2det convert`: an official checkpoint becomes a weights file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from d2det.config import Config


class ConvertCommand(Config):
    """Turns an official checkpoint (.pth) into a weights file, or says which tensors do not fit.

    Example: d2det convert D2Det-detection-res50.pth -o d2det_r50.safetensors --preset d2det_r50
    """

    checkpoint: tyro.conf.Positional[Path]
    """File of the official code. It is opened without running any code in it."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Weights file to write (.safetensors)."""
    preset: str
    """Configuration the checkpoint was trained with; `d2det presets` lists them."""


def run(options: ConvertCommand) -> int:
    """Converts the file and returns the exit code.

    Raises:
        ValueError: No such preset, no checkpoint, or tensors that do not fit.
    """
    from d2det.checkpoints.official import convert_file  # imports torch; --help must not
    from d2det.presets import get_preset

    preset = get_preset(options.preset)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    digest = convert_file(options.checkpoint, options.output, preset)
    print(f"{options.output}: {preset.name}, {preset.model.num_classes} classes, sha256 {digest}")
    return 0
