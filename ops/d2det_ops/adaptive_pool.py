"""Adaptive weighting and pooling of RoI features (discriminative RoI pooling, d2det.md 6.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def adaptive_pool(
    x: Tensor,
    logits: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    gate_scale: float = 12.0,
    kernel_size: int = 3,
    stride: int = 2,
    padding: int = 1,
) -> Tensor:
    """Returns the average of x over pooling windows, weighted by a gate computed from `logits`.

        w = exp(gate_scale * sigmoid(InstanceNorm(logits; weight, bias)))
        out = sum_window(w * x) / sum_window(w)

    Args:
        x: (R, C, H, W) float.  logits: (R, C, H, W) float, same as x.
        weight, bias: (C,) affine parameters of the instance norm.
        eps: added to the biased variance of each (RoI, channel) map.
        gate_scale: weights lie in (1, exp(gate_scale)).
        kernel_size, stride, padding: of the pooling windows; padding weighs nothing.

    Returns:
        (R, C, H', W'), dtype of x; computed in float32 at least.
    """
    return adaptive_pool_reference(
        x,
        logits,
        weight,
        bias,
        eps=eps,
        gate_scale=gate_scale,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
    )


def adaptive_pool_reference(
    x: Tensor,
    logits: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    gate_scale: float = 12.0,
    kernel_size: int = 3,
    stride: int = 2,
    padding: int = 1,
) -> Tensor:
    """Returns what `adaptive_pool` returns, one PyTorch call after the other."""
    # exp(12) overflows float16, so half precision is widened whatever autocast says.
    wide = torch.promote_types(x.dtype, torch.float32)
    z = logits.to(wide)
    variance, mean = torch.var_mean(z, dim=(2, 3), correction=0, keepdim=True)
    z = (z - mean) * torch.rsqrt(variance + eps)
    z = z * weight.to(wide)[:, None, None] + bias.to(wide)[:, None, None]
    # Subtracting the largest exponent cancels in the quotient and keeps the sums small.
    gate = torch.exp(gate_scale * torch.sigmoid(z) - gate_scale)
    pooled = F.avg_pool2d(gate * x.to(wide), kernel_size, stride, padding)
    return (pooled / F.avg_pool2d(gate, kernel_size, stride, padding)).to(x.dtype)
