"""The factor that keeps float16 gradients above the smallest and below the largest number.

It is a pure function of which steps were finite, so it is the same on all ranks, and lives among
the numbers of the checkpoint.
"""

from __future__ import annotations

from typing import Any

FIRST_SCALE = 2.0**16
GROWTH_STEPS = 2000
"""Finite steps in a row after which twice the scale is tried (the usual choice for float16)."""
_SCALE, _GOOD_STEPS = "loss_scale", "steps_at_loss_scale"


class LossScaler:
    """Doubles the scale after many finite steps and halves it after one that was not."""

    def __init__(self, numbers: dict[str, Any], *, enabled: bool) -> None:
        """Keeps its state in `numbers`; where not enabled the scale is always 1."""
        self._numbers = numbers
        self.enabled = enabled

    @property
    def scale(self) -> float:
        """The factor of the loss."""
        return float(self._numbers.get(_SCALE, FIRST_SCALE)) if self.enabled else 1.0

    def update(self, *, is_finite: bool) -> bool:
        """Learns from a step; returns whether a step that was not finite is the scale's fault.

        It is as long as the scale can still be lowered: then the next step may do.
        """
        if not self.enabled:
            return False
        scale, steps = self.scale, int(self._numbers.get(_GOOD_STEPS, 0)) + 1
        excused = not is_finite and scale > 1
        if not is_finite:
            scale, steps = max(scale / 2, 1.0), 0
        elif steps == GROWTH_STEPS:
            scale, steps = scale * 2, 0
        self._numbers.update({_SCALE: scale, _GOOD_STEPS: steps})
        return excused
