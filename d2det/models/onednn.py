"""Layers in float32 on CPUs, changed so that PyTorch has oneDNN compute them.

It leaves 1x1 convolutions of few pictures on one thread, and linear layers, to a matrix product of
the BLAS. Where that is MKL on a CPU that is not Intel's, oneDNN is twice as fast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2det.models.roi_pooling import ROI_SIZE, RoiLinear


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
    """Changes layers of `model`, in place, that are in float32 on a CPU. For inference."""
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Conv2d) and _is_float32_on_cpu(layer.weight):
                if layer.kernel_size == (1, 1):
                    # Dilated convolutions go to oneDNN whatever their size, and a single tap
                    # cannot be spread.
                    layer.dilation = (2, 2)
            elif isinstance(layer, RoiLinear) and _is_float32_on_cpu(layer.weight):
                setattr(parent, name, RoiConv2d(layer))


def _is_float32_on_cpu(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32
