"""Anchor boxes of the pyramid.

Letters: A anchors per cell, H x W cells of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from d2det.boxes import base_anchors


@dataclass(frozen=True)
class Anchors:
    """Lays the anchors of each level over all of its cells.

    strides: pixels between the cells of each level.  scale: side of an anchor in strides.
    ratios: height over width of the A anchors of a cell.
    """

    strides: tuple[int, ...]
    scale: float
    ratios: tuple[float, ...]

    def __call__(
        self, shapes: Sequence[tuple[int, int]], device: torch.device | str = "cpu"
    ) -> list[Tensor]:
        """Returns one (H * W * A, 4) float32 tensor a level of `shapes` (H, W): rows, columns, A.

        Boxes are in pixels of the resized input and may reach beyond it.
        """
        base = [base_anchors(stride, self.scale, self.ratios) for stride in self.strides]
        levels = zip(torch.stack(base).to(device), shapes, self.strides, strict=True)
        return [_lay(anchors, *shape, stride) for anchors, shape, stride in levels]


def _lay(base: Tensor, height: int, width: int, stride: int) -> Tensor:
    """(H * W * A, 4): `base` (A, 4) moved to every cell."""
    x = torch.arange(width, device=base.device, dtype=base.dtype) * stride
    y = torch.arange(height, device=base.device, dtype=base.dtype) * stride
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    shift = torch.stack((columns, rows, columns, rows), -1)
    return (shift[:, :, None] + base).reshape(-1, 4)
