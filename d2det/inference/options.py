"""Options of inference, shared by the command line, evaluation, labelling and the endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import tyro
from pydantic import Field, model_validator

from d2det.config import Config, InputConfig
from d2det.inference.limits import DEFAULT_LIMITS, DecodeLimits


class PredictOptions(Config):
    """How pictures are predicted; what is None follows the preset in the weights file."""

    score_threshold: float | None = Field(default=None, ge=0, le=1)
    """Detections score more than this; None: the preset's, low enough for evaluation."""
    max_detections: int | None = Field(default=None, ge=1)
    """Detections per picture, or per window of a tiled one; None: the preset's."""
    masks: bool = True
    """Predict masks where the weights can."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of convolutions and matrix products; bf16 is about twice as fast on CPUs that have it."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU where there is one."""
    short_side: int | None = Field(default=None, ge=32)
    """Pixels of the shorter side after resizing; None: the preset's."""
    long_side: int | None = Field(default=None, ge=32)
    """Pixels the longer side may not pass; None: the preset's, in proportion to the short side."""
    tile: int | None = Field(default=None, ge=32)
    """Cut larger pictures into windows of this many pixels and merge what is found; None: never."""
    overlap: int = Field(default=200, ge=0)
    """Pixels that neighbouring windows share; objects up to this size are seen whole."""
    tta: bool = False
    """Average over several sizes and mirrored views: slower, somewhat better."""
    batch_pixels: int = Field(default=4_000_000, ge=1)
    """Pixels after resizing that run through the network at once (at least one picture)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tile is not None and self.overlap >= self.tile:
            raise ValueError(f"overlap {self.overlap} must be less than tile {self.tile}")
        if self.short_side and self.long_side and self.short_side > self.long_side:
            raise ValueError(
                f"short_side {self.short_side} must not pass long_side {self.long_side}"
            )
        return self

    def input_of(self, preset: InputConfig) -> InputConfig:
        """Returns the preset's input with the sizes asked for here."""
        short = self.short_side or min(preset.short_side, self.long_side or preset.short_side)
        long = self.long_side or max(short, round(preset.long_side * short / preset.short_side))
        return preset.model_copy(update={"short_side": short, "long_side": long})


class InputsAndOutputs(Config):
    """What `d2det predict` reads and writes; named first in its help."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Files, folders (searched to their depths) and quoted patterns such as "lake/**/*.png"."""
    weights: Path
    """Weights file (.safetensors) from training or from `d2det convert`."""
    json_path: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    """File for the results; pictures that cannot be read have an error there."""
    save_dir: Path | None = None
    """Folder for the pictures with their objects drawn."""
    draw_threshold: float = Field(default=0.3, ge=0, le=1)
    """Lowest score that is drawn or printed; the JSON holds all."""


class PredictCommand(PredictOptions, InputsAndOutputs):
    """Finds objects in pictures: writes them as JSON, draws them, or prints what each holds.

    Example: d2det predict photos/ scene.tif --weights w.safetensors --json out.json --tile 800
    """

    read_threads: int = Field(default=2, ge=1)
    """Threads that read and decode ahead of the network."""
    limits: DecodeLimits = DEFAULT_LIMITS
    """Pictures beyond these are refused before they are decoded."""

    @model_validator(mode="after")
    def _check_paths(self) -> Self:
        if not self.paths:
            raise ValueError("give at least one file, folder or pattern")
        return self


class BenchCommand(PredictOptions):
    """Measures a preset or a weights file on this machine: pictures a second, and the parts.

    Example: d2det bench --preset d2det_r50 --precision bf16
    """

    preset: str | None = None
    """Preset to measure with random weights; what it finds is arbitrary, its cost nearly real."""
    weights: Path | None = None
    """Weights file to measure instead."""
    image: Path | None = None
    """Picture to measure with; None: a made one of the input's size."""
    repeats: int = Field(default=5, ge=1)
    """Measured runs, after one that warms up; medians are shown."""
    json_path: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    """File for the numbers."""

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.preset is None) == (self.weights is None):
            raise ValueError("give either --preset or --weights")
        return self
