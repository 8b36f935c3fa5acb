"""The one rule of precision: boxes, scores and losses are float32 at least, whatever computes."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Returns x (any shape) in float32; a float64 network, for exact comparisons, stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
