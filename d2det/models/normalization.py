"""Batch normalisation with fixed statistics, and its folding into the convolution before it.

Detectors train on a few pictures per device, too few to estimate statistics, so trunks keep those
of their pre-training and learn only scale and shift.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FixedBatchNorm2d(nn.BatchNorm2d):
    """Normalises (N, C, H, W) by the stored statistics, in training too; scale and shift learn."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns x (N, C, H, W) normalised, scaled and shifted by channel."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> None:
    """Folds every fixed normalisation of `model` into its convolution, in place, for inference.

    In all our trunks a normalisation is registered right after the convolution that it follows,
    so the pairs are found by order among the children of a module.
    """
    for parent in list(model.modules()):
        previous: nn.Module | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, FixedBatchNorm2d):
                assert previous is not None, f"{name} follows no convolution"
                _fold(previous, child)
                setattr(parent, name, nn.Identity())
            previous = child


def _fold(convolution: nn.Module, norm: FixedBatchNorm2d) -> None:
    """Scales the weight (O, I, k, k) and sets the bias (O,) of `convolution` to include `norm`."""
    weight, bias = convolution.weight, convolution.bias
    assert isinstance(weight, Tensor)
    assert bias is None, "a convolution under a normalisation has no bias of its own"
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # Float64, so that folding adds no rounding of its own beyond one per weight.
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    folded = weight.double() * scale[:, None, None, None]
    convolution.weight = nn.Parameter(folded.to(weight), requires_grad=False)
    convolution.bias = nn.Parameter(shift.to(weight), requires_grad=False)
