"""Convolutions of one filter a channel, for which cuDNN is the wrong choice.

Letters: N pictures, C channels, H x W positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """Convolves every channel with a filter of its own; any bias is that of a folded normalisation.

    On a GPU by PyTorch's kernel. cuDNN (9.19, H200) compiles another for every size it meets, which
    takes most of a second a layer, and is no faster afterwards: a training on pictures of many
    sizes did little else.
    """

    def __init__(self, channels: int, kernel_size: int, *, stride: int = 1) -> None:
        super().__init__(
            channels,
            channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=channels,
            bias=False,
        )

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns (N, C, H / stride, W / stride), channels last, from x (N, C, H, W)."""
        # PyTorch leaves the layer to cuDNN if map or filter is channels last. A filter of one
        # channel counts as that and as contiguous too: only a view gets strides that say it is not.
        if x.is_cuda:
            x, weight = x.contiguous(), weight.flatten(1).view(weight.shape)
        y: Tensor = super()._conv_forward(x, weight, bias)
        return y.contiguous(memory_format=torch.channels_last) if x.is_cuda else y
