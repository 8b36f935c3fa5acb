"""MobileNetV2 trunk (Sandler et al., CVPR 2018) with parameters named as torchvision names them.

Letters: N pictures, H x W pixels of the input (multiples of 32).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from d2det.models import initialization
from d2det.models.depthwise import DepthwiseConv2d
from d2det.models.normalization import FixedBatchNorm2d, NormalizedSequential
from d2det.models.precision import narrow

# Expansion, output channels, number of blocks and first stride of each group (table 2 there).
_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_HEAD_CHANNELS = 1280
# Last entry of `features` at strides 4, 8, 16 and 32.
_STAGE_ENDS = (3, 6, 13, 18)


class MobileNetV2(nn.Module):
    """MobileNetV2 without its classifier; returns four stages, strides 4, 8, 16 and 32."""

    out_channels = (24, 32, 96, _HEAD_CHANNELS)

    def __init__(self, *, frozen_stages: int = 1) -> None:
        super().__init__()
        stem = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        layers: list[nn.Module] = [_conv_norm(stem)]
        channels = 32
        for expansion, out_channels, count, stride in _GROUPS:
            for i in range(count):
                first_stride = stride if i == 0 else 1
                layers.append(
                    _InvertedResidual(
                        channels, out_channels, stride=first_stride, expansion=expansion
                    )
                )
                channels = out_channels
        layers.append(_conv_norm(nn.Conv2d(channels, _HEAD_CHANNELS, 1, bias=False)))
        self.features = nn.Sequential(*layers)
        self._freeze(frozen_stages)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Returns C2..C5, (N, `out_channels`[i], H / 2^(i + 2), W / 2^(i + 2))."""
        x, stages = narrow(self.features[0](pixels), self.features[1]), []
        for i, layer in enumerate(self.features[1:], start=1):
            x = layer(x)
            if i in _STAGE_ENDS:
                stages.append(x)
        return tuple(stages)

    @torch.no_grad()
    def centre(self) -> None:
        """Moves the mean of the first linear bottleneck to zero, leaving all outputs as they are.

        The published weights have channels there of mean 5 and next to no variance, so the
        normalised expansion behind them computes 127 x - 1974: in bfloat16 nothing is left of it.
        Nothing but that expansion reads the bottleneck, so any shift of it can be undone in its
        mean; the best is the one that its mean implies, expansion @ shift = mean.
        """
        blocks: Any = self.features
        bottleneck_norm, (expansion, expansion_norm, _) = blocks[1].conv[-1], blocks[2].conv[0]
        weight = expansion.weight.flatten(1).double()
        shift = torch.linalg.lstsq(weight, expansion_norm.running_mean.double()).solution
        bottleneck_norm.bias -= shift
        expansion_norm.running_mean -= weight @ shift

    def _freeze(self, num_stages: int) -> None:
        """Stops the stem, which is the first layer, and `num_stages` stages from learning."""
        end = (0, *_STAGE_ENDS)[num_stages]
        self.features[: end + 1].requires_grad_(False)


class _InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection, around a shortcut where it fits."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_conv_norm(nn.Conv2d(in_channels, hidden, 1, bias=False)))
        projection = nn.Conv2d(hidden, out_channels, 1, bias=False)
        initialization.kaiming(projection)
        layers += [
            _conv_norm(DepthwiseConv2d(hidden, 3, stride=stride)),
            projection,
            FixedBatchNorm2d(out_channels),
        ]
        self.conv = NormalizedSequential(*layers)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, out, H / stride, W / stride) from x (N, in, H, W)."""
        out: Tensor = self.conv(x)
        return x + out if self.has_shortcut else out


def _conv_norm(convolution: nn.Conv2d) -> nn.Sequential:
    initialization.kaiming(convolution)
    norm = FixedBatchNorm2d(convolution.out_channels)
    return NormalizedSequential(convolution, norm, nn.ReLU6(inplace=True))
