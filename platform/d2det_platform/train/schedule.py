"""The learning rate as a pure function of the step, so a restart cannot drift."""

from __future__ import annotations

import math

from d2det.config import TrainConfig


def learning_rate(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Returns the learning rate of `step` (0-based): warm-up times step or cosine decay.

    Warm-up is linear from `warmup_start` to 1 over `warmup_steps`, as in the official schedule
    (d2det.md 9). "step" divides by ten after each epoch of `lr_steps`; "cosine" falls to zero at
    the end of the last epoch.
    """
    scale = 1.0
    if step < config.warmup_steps:
        scale = 1 - (1 - step / config.warmup_steps) * (1 - config.warmup_start)
    if config.schedule == "cosine":
        progress = step / (config.epochs * steps_per_epoch)
        scale *= (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    else:
        scale *= 0.1 ** sum(step >= epoch * steps_per_epoch for epoch in config.lr_steps)
    return config.lr * scale
