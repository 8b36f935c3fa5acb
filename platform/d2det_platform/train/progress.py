"""What a person watching the run sees: a line now and then, and one an epoch."""

from __future__ import annotations

import datetime
import sys
import time
from collections import deque
from collections.abc import Mapping

LINE_EVERY_S = 20.0
WINDOW_STEPS = 50


class Progress:
    """Prints losses, speed and time left of a run of `total_steps` steps; for one rank."""

    def __init__(self, total_steps: int, steps_per_epoch: int) -> None:
        self._total = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._recent: deque[tuple[float, Mapping[str, float]]] = deque(maxlen=WINDOW_STEPS)
        self._printed_at = time.monotonic()

    def step(self, step: int, losses: Mapping[str, float], images: int) -> None:
        """Takes note of a step of `images` pictures; prints a line if the last one is old."""
        now = time.monotonic()
        self._recent.append((now, losses))
        is_epoch_end = step % self._steps_per_epoch == 0
        if not is_epoch_end and now - self._printed_at < LINE_EVERY_S:
            return
        self._printed_at = now
        means = {
            name.removeprefix("loss/"): sum(row[name] for _, row in self._recent)
            / len(self._recent)
            for name in losses
        }
        parts = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        _write_line(f"{self._where(step)}  {parts}  {self._speed(images, self._total - step)}")

    def evaluation(self, metrics: Mapping[str, float]) -> None:
        """Prints the main figures of an evaluation."""
        shown = [name for name in metrics if name.endswith(("/AP", "/AP50", "/AP75"))]
        _write_line("  ".join(f"{name} {metrics[name]:.3f}" for name in shown))

    def _where(self, step: int) -> str:
        epochs = self._total // self._steps_per_epoch
        return f"epoch {(step - 1) // self._steps_per_epoch + 1}/{epochs} step {step}/{self._total}"

    def _speed(self, images: int, steps_left: int) -> str:
        if len(self._recent) < 2:
            return ""
        step_s = (self._recent[-1][0] - self._recent[0][0]) / (len(self._recent) - 1)
        left = datetime.timedelta(seconds=round(steps_left * step_s))
        return f"{images / step_s:.2f} images/s  {left} left"


def _write_line(line: str) -> None:
    # Not print: Ray Train replaces it by one that shows every line twice.
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
