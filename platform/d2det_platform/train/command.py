"""`d2det train`: the preset's values, then a YAML file's, then the command line's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
import yaml

from d2det.presets import get_preset
from d2det_platform.train.options import DataOptions, TrainOptions
from d2det_platform.train.outcome import RunFailedError

STOPPED = 130
"""Exit code of a run that was asked to stop, that of an interrupted command."""
_REQUIRED = "required://"  # stands for the data's paths until they are given


def parse(args: Sequence[str]) -> TrainOptions:
    """Returns the options of a command line; `--config FILE` may hold any of them as YAML.

    Raises:
        ValueError: a value is missing or makes no sense; the message says which.
        SystemExit: 2 for options that do not exist or exclude each other, 0 after `--help`.
    """
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--preset")
    known, _ = first.parse_known_args(args)
    values = _read_yaml(known.config) if known.config else {}
    preset = get_preset(
        known.preset or values.get("preset") or TrainOptions.model_fields["preset"].default
    )
    defaults: dict[str, Any] = {
        "preset": preset.name,
        "model": preset.model.model_dump(),
        "input": preset.input.model_dump(),
        "train": preset.train.model_dump(),
        "data": {"train_images": _REQUIRED, "train_annotations": _REQUIRED},
    }
    options = tyro.cli(
        TrainOptions,
        prog="d2det train",
        default=TrainOptions.model_validate(_merged(defaults, values)),
        args=_without_config(args),
        config=(tyro.conf.AvoidSubcommands,),
    )
    for name in DataOptions.model_fields:
        if getattr(options.data, name) == _REQUIRED:
            raise ValueError(f"--data.{name.replace('_', '-')} is required")
    return options


def run(options: TrainOptions) -> int:
    """Trains and returns the exit code."""
    # Imported here: ray starts slowly, and --help must not.
    from ray.train import TrainingFailedError

    from d2det_platform.train.run import fit

    try:
        outcome, files = fit(options)
    except (TrainingFailedError, RunFailedError) as error:
        print(f"d2det train: the run failed: {_reason(error)}", file=sys.stderr)
        return 1
    if outcome.kind == "stopped":
        print(f"stopped at step {outcome.step} of {options.run_url}; the same command goes on")
        return STOPPED
    print(f"run: {options.run_url}", *files, sep="\n  ")
    return 0


def _reason(error: Exception) -> str:
    """Our own message whole; of a trace of Ray's the last line, which says what was raised."""
    text = str(error.__cause__ or error).strip()
    return text if isinstance(error, RunFailedError) else text.splitlines()[-1]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--config {path} must hold options by name, not {values!r:.60}")
    return values


def _merged(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`defaults` with `values` over them, section by section."""
    merged = dict(defaults)
    for name, value in values.items():
        below = merged.get(name)
        both = isinstance(below, dict) and isinstance(value, dict)
        merged[name] = _merged(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _without_config(args: Sequence[str]) -> list[str]:
    rest = list(args)
    for i, arg in enumerate(rest):
        if arg == "--config":
            return rest[:i] + rest[i + 2 :]
        if arg.startswith("--config="):
            return rest[:i] + rest[i + 1 :]
    return rest
