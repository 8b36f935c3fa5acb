"""What a person watching the run sees: a line now and then, and one an epoch."""

from __future__ import annotations

import datetime
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence

LINE_EVERY_S = 20.0
WINDOW_STEPS = 50
_GB = 1e9


class Progress:
    """Prints losses, speed and time left of a run of `total_steps` steps; for one rank."""

    def __init__(self, total_steps: int, steps_per_epoch: int) -> None:
        self._total = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._recent: deque[tuple[float, Mapping[str, float]]] = deque(maxlen=WINDOW_STEPS)
        self._epoch: list[Mapping[str, float]] = []
        self._printed_at = self._epoch_at = time.monotonic()

    def step(self, step: int, losses: Mapping[str, float], images: int) -> None:
        """Takes note of a step of `images` pictures; prints a line if the last one is old."""
        now = time.monotonic()
        self._recent.append((now, losses))
        self._epoch.append(losses)
        is_epoch_end = step % self._steps_per_epoch == 0
        if is_epoch_end or now - self._printed_at < LINE_EVERY_S:
            return
        self._printed_at = now
        parts = _means([row for _, row in self._recent])
        _write_line(f"{self._where(step)}  {parts}  {self._speed(images, self._total - step)}")

    def epoch(
        self,
        step: int,
        images: int,
        *,
        images_per_s: Sequence[float | None],
        peak_bytes: Sequence[int],
    ) -> None:
        """Prints the line of an epoch that ended with `step`.

        Args:
            step: optimiser steps done.
            images: pictures of a step.
            images_per_s: pictures a second that each rank computes, waits left out.
            peak_bytes: largest memory of each rank.
        """
        now, num_steps = time.monotonic(), len(self._epoch)
        seconds = now - self._epoch_at
        speeds = "+".join("?" if speed is None else f"{speed:.2f}" for speed in images_per_s)
        memory = "+".join(f"{peak / _GB:.1f}" for peak in peak_bytes)
        left = datetime.timedelta(seconds=round((self._total - step) * seconds / max(num_steps, 1)))
        _write_line(
            f"{self._where(step)} done  {_means(self._epoch)}  "
            f"{images * num_steps / seconds:.2f} images/s (ranks {speeds})  memory {memory} GB  "
            f"{left} left"
        )
        self._epoch, self._epoch_at, self._printed_at = [], now, now

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Prints the main figures of an evaluation of the weights after `step`."""
        shown = [name for name in metrics if name.endswith(("/AP", "/AP50", "/AP75"))]
        figures = "  ".join(f"{name} {metrics[name]:.3f}" for name in shown)
        _write_line(f"step {step} scores  {figures}")

    def _where(self, step: int) -> str:
        epochs = self._total // self._steps_per_epoch
        return f"epoch {(step - 1) // self._steps_per_epoch + 1}/{epochs} step {step}/{self._total}"

    def _speed(self, images: int, steps_left: int) -> str:
        if len(self._recent) < 2:
            return ""
        step_s = (self._recent[-1][0] - self._recent[0][0]) / (len(self._recent) - 1)
        left = datetime.timedelta(seconds=round(steps_left * step_s))
        return f"{images / step_s:.2f} images/s  {left} left"


def _means(rows: Sequence[Mapping[str, float]]) -> str:
    """The mean of every loss over `rows`."""
    if not rows:
        return "no finite step"
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    return "  ".join(f"{name.removeprefix('loss/')} {value:.3f}" for name, value in means.items())


def _write_line(line: str) -> None:
    # Not print: Ray Train replaces it by one that shows every line twice.
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
