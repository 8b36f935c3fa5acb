"""Layers in float32 on CPUs, written so that PyTorch has oneDNN compute them.

It leaves 1x1 convolutions of few pictures on one thread, and linear layers, to a matrix product of
the BLAS. Where that is MKL on a CPU that is not Intel's, oneDNN is twice as fast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2det.models.roi_pooling import ROI_SIZE, RoiLinear


class PointwiseConv2d(nn.Module):
    """A 1x1 convolution of stride 1.

    What has a stride goes to oneDNN whatever its size. So the pixels are laid in one row, and the
    stride is along the side on which there is a single one.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        """Takes over the parameters of `convolution`."""
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, out, H, W) from x (N, in, H, W)."""
        row = x.flatten(2)[:, :, None]
        row = F.conv2d(row, self.weight, self.bias, stride=(2, 1))
        return row.view(*row.shape[:2], *x.shape[2:])


class RoiConv2d(nn.Module):
    """A linear layer over whole RoIs, as the one position of a convolution as large as they are."""

    def __init__(self, linear: RoiLinear) -> None:
        """Takes over the parameters of `linear`."""
        super().__init__()
        kernel = linear.weight.unflatten(1, (-1, ROI_SIZE, ROI_SIZE))
        self.weight = nn.Parameter(kernel, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Returns (R, out) from x (R, C, 7, 7)."""
        return F.conv2d(x, self.weight, self.bias).flatten(1)


def use_onednn(model: nn.Module) -> None:
    """Replaces layers in `model`, in place, if it is in float32 on a CPU. For inference."""
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Conv2d | RoiLinear) and _is_float32_on_cpu(layer.weight):
                if isinstance(layer, RoiLinear):
                    setattr(parent, name, RoiConv2d(layer))
                elif (layer.kernel_size, layer.stride) == ((1, 1), (1, 1)):
                    setattr(parent, name, PointwiseConv2d(layer))


def _is_float32_on_cpu(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32
