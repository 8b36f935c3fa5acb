"""Runs the training job as a user would, and reads what it logged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

JOB = Path(__file__).parents[1] / "jobs" / "train_coco.py"


def train(options: dict[str, object]) -> list[dict[str, Any]]:
    """Trains with `options`, named as on the command line, and returns the rows of the run's log.

    Among the options must be `storage` and `name`; a run of that name is continued.
    """
    subprocess.run([sys.executable, str(JOB), *flags(options)], check=True)
    log = Path(str(options["storage"])) / str(options["name"]) / "metrics.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()]


def flags(options: dict[str, object]) -> list[str]:
    """Returns `options` as words of a command line."""
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def last_evaluation(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the metrics of the run's last evaluation."""
    metrics = next(row["metrics"] for row in reversed(rows) if row.get("event") == "evaluation")
    return dict(metrics)


def minutes(rows: list[dict[str, Any]]) -> float:
    """Returns the minutes spent in training steps, evaluations not included."""
    return float(sum(row.get("seconds", 0.0) for row in rows)) / 60
