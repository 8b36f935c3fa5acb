"""Anchor boxes of the pyramid.

Letters: A anchors per cell, H x W cells of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from d2det.boxes import base_anchors


class Anchors(nn.Module):
    """Lays the base anchors of each level over all of its cells."""

    base: Tensor

    def __init__(self, strides: Sequence[int], *, scale: float, ratios: tuple[float, ...]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.num_per_cell = len(ratios)
        base = torch.stack([base_anchors(stride, scale, ratios) for stride in strides])
        # Derived from the configuration, so not part of a checkpoint.
        self.register_buffer("base", base, persistent=False)

    def forward(self, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Returns one (H * W * A, 4) float32 tensor a level of `shapes` (H, W): rows, columns, A.

        Boxes are in pixels of the resized input and may reach beyond it.
        """
        return [
            self._grid(base, height, width, stride)
            for base, (height, width), stride in zip(self.base, shapes, self.strides, strict=True)
        ]

    def _grid(self, base: Tensor, height: int, width: int, stride: int) -> Tensor:
        x = torch.arange(width, device=base.device, dtype=base.dtype) * stride
        y = torch.arange(height, device=base.device, dtype=base.dtype) * stride
        shift = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)[..., [1, 0, 1, 0]]
        return (shift[:, :, None] + base).reshape(-1, 4)
