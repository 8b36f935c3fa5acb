"""The run's log: one JSON line a step and an evaluation, each step exactly once.

Rows since the last checkpoint would be repeated after a restart, so the log is cut to the step
training resumes from.
"""

from __future__ import annotations

import json
from typing import Any

from d2det_platform.store import RunStore

FILE = "metrics.jsonl"
EVALUATION = "evaluation"


class MetricsLog:
    """Rows of one run, kept in memory and written whole with every checkpoint."""

    def __init__(self, store: RunStore, resume_step: int) -> None:
        """Reads the rows up to `resume_step` steps done; later ones will happen again."""
        self.store = store
        try:
            lines = store.read(FILE).splitlines()
        except FileNotFoundError:
            lines = []
        self.rows: list[dict[str, Any]] = [
            row for row in map(json.loads, lines) if row["step"] <= resume_step
        ]

    def add(self, step: int, **values: Any) -> None:
        """Adds a row; `step` counts the optimiser steps done when it was taken."""
        self.rows.append({"step": step, **values})

    def add_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Adds the scores of the weights after `step`, in place of those it may have.

        They may come steps later, and once more if the run was interrupted between the log and the
        checkpoint.
        """
        self.rows = [
            row for row in self.rows if (row["step"], row.get("event")) != (step, EVALUATION)
        ]
        self.add(step, event=EVALUATION, metrics=metrics)

    def write(self) -> None:
        """Writes all rows; call it before the checkpoint of the same step is committed."""
        self.store.write(FILE, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
