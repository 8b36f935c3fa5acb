"""Modulated deformable convolution (DCNv2, Zhu et al., CVPR 2019).

Letters: N pictures, C channels in, O out, H x W positions of the output.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from d2det.models import initialization
from d2det.models.precision import wide

_TAPS = 9


class ModulatedDeformConv2d(nn.Module):
    """A 3x3 convolution whose nine taps move by predicted offsets and are weighted by gates.

    `offset` predicts 27 channels: (dy, dx) of each tap in row-major order, then the gate logits.
    It starts at zero: no displacement, every gate one half.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.bias: nn.Parameter | None = None
        self.offset = nn.Conv2d(in_channels, 3 * _TAPS, 3, stride=stride, padding=1)
        bound = 1 / math.sqrt(_TAPS * in_channels)
        nn.init.uniform_(self.weight, -bound, bound)
        initialization.zero(self.offset)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, O, H, W) from x (N, C, H * stride, W * stride)."""
        # Here, because it imports torch's compiler: seconds that networks without DCN need not pay.
        from torchvision.ops import deform_conv2d

        geometry = wide(self.offset(x))
        # Float32 at least: bfloat16 keeps eight bits, too few for positions in a large map, and
        # the operator has no bfloat16 kernel on the CPU.
        out: Tensor = deform_conv2d(
            wide(x),
            geometry[:, : 2 * _TAPS],
            wide(self.weight),
            None if self.bias is None else wide(self.bias),
            stride=self.stride,
            padding=1,
            mask=geometry[:, 2 * _TAPS :].sigmoid(),
        )
        return out.to(x.dtype)
