"""ResNet trunks (He et al., CVPR 2016) with parameters named as torchvision names them.

Letters: N pictures, H x W pixels of the input (multiples of 32).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from d2det.models import initialization
from d2det.models.dcn import ModulatedDeformConv2d
from d2det.models.normalization import FixedBatchNorm2d, NormalizedSequential, normalized
from d2det.models.precision import narrow

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_EXPANSION = 4


class ResNet(nn.Module):
    """A bottleneck ResNet that returns all four stages, strides 4, 8, 16 and 32."""

    out_channels = (256, 512, 1024, 2048)

    def __init__(self, depth: int, *, deformable: bool = False, frozen_stages: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = FixedBatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages, channels = [], 64
        for stage, count in enumerate(_BLOCKS[depth], start=1):
            blocks = []
            for i in range(count):
                stride = 2 if i == 0 and stage > 1 else 1
                block = _Bottleneck(
                    channels, 32 << stage, stride=stride, deformable=deformable and stage > 1
                )
                channels = block.out_channels
                blocks.append(block)
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self._freeze(frozen_stages)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Returns C2..C5, (N, 256 * 2^i, H / 2^(i + 2), W / 2^(i + 2)), of pixels (N, 3, H, W)."""
        x = F.relu(normalized(self.conv1, self.bn1, pixels), inplace=True)
        x = self.maxpool(narrow(x, self.layer1))
        stages = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            stages.append(x)
        return tuple(stages)

    def _freeze(self, num_stages: int) -> None:
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)[:num_stages]
        for module in (self.conv1, self.bn1, *stages):
            module.requires_grad_(False)


class _Bottleneck(nn.Module):
    """1x1, 3x3 (which takes the stride), 1x1, around a shortcut."""

    def __init__(self, in_channels: int, width: int, *, stride: int, deformable: bool) -> None:
        super().__init__()
        self.out_channels = width * _EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = FixedBatchNorm2d(width)
        self.conv2: nn.Module
        if deformable:
            self.conv2 = ModulatedDeformConv2d(width, width, stride=stride)
        else:
            self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = FixedBatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, self.out_channels, 1, bias=False)
        self.bn3 = FixedBatchNorm2d(self.out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != self.out_channels:
            self.downsample = NormalizedSequential(
                nn.Conv2d(in_channels, self.out_channels, 1, stride=stride, bias=False),
                FixedBatchNorm2d(self.out_channels),
            )
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is None:
                initialization.kaiming(module)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, out, H / stride, W / stride) from x (N, in, H, W)."""
        out = F.relu(normalized(self.conv1, self.bn1, x), inplace=True)
        out = F.relu(normalized(self.conv2, self.bn2, out), inplace=True)
        out = normalized(self.conv3, self.bn3, out)
        # In place: the maps of the first stage are too large to be taken afresh for a sum.
        return F.relu(out.add_(self.downsample(x)), inplace=True)
