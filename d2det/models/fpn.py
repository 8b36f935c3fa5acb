"""Feature pyramid network (Lin et al., CVPR 2017).

Letters: N pictures, C pyramid channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from d2det.models import initialization

STRIDES = (4, 8, 16, 32, 64)
"""Pixels between neighbouring positions of P2..P6."""
SIZE_MULTIPLE = STRIDES[3]
"""Sides of the network's input are multiples of the stride of the deepest trunk stage."""


class FeaturePyramid(nn.Module):
    """Turns C2..C5 of a trunk into P2..P6, all of the same width, without norm or activation."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.lateral = nn.ModuleList(nn.Conv2d(count, channels, 1) for count in in_channels)
        self.output = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels
        )
        initialization.xavier(*self.lateral, *self.output)

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns P2..P6, each (N, C, H_l, W_l); P6 is every second position of P5."""
        merged = [lateral(stage) for lateral, stage in zip(self.lateral, stages, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            size = merged[i - 1].shape[-2:]
            merged[i - 1].add_(F.interpolate(merged[i], size=size, mode="nearest"))
        levels = [output(x) for output, x in zip(self.output, merged, strict=True)]
        return (*levels, levels[-1][:, :, ::2, ::2])
