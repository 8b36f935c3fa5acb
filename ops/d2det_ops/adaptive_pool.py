"""Adaptive weighting and pooling of RoI features in one go (D2Det section 3.2).

Letters: R RoIs, C channels, H x W bins, H' x W' bins after pooling.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from d2det_ops import _library

MAX_GATE_SCALE = 80.0
"""Weights span a factor of exp(gate_scale), which float32 holds up to exp(87)."""


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

        t = weight * (logits - mean) / sqrt(variance + eps) + bias     per RoI and channel
        w = exp(gate_scale * sigmoid(t))
        out = sum_window(w * x) / sum_window(w)

    The compiled kernel keeps x and logits for the backward, and nothing else of their size. With
    S the sum over the windows that hold a bin, V = sum_window(w) and g the gradient of out:

        dx = w S(g / V)
        dt = w gate_scale sigmoid(t) (1 - sigmoid(t)) (x S(g / V) - S(g out / V))
        dlogits = weight / deviation * (dt - mean(dt) - z mean(dt z)),    z = (t - bias) / weight
        dweight = sum(dt z),    dbias = sum(dt)

    Args:
        x: (R, C, H, W) float.  logits: (R, C, H, W) float, same dtype.
        weight, bias: (C,) float, of the instance norm.
        eps: added to the biased variance of each (RoI, channel) map.
        gate_scale: weights lie in (1, exp(gate_scale)); at most MAX_GATE_SCALE.
        kernel_size, stride, padding: of the pooling windows; padding weighs nothing.

    Returns:
        (R, C, H', W'), dtype and memory format of x; computed in float32 at least.

    Raises:
        ValueError: for shapes and options that make no sense.
    """
    _check(x, logits, weight, bias, gate_scale, kernel_size, stride, padding)
    if not _library.compiled("adaptive_pool", x):
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
    pooled: Tensor = _library.op("adaptive_pool")(
        x, logits, weight, bias, eps, gate_scale, kernel_size, stride, padding
    )[0]
    return pooled


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
    z = z - z.mean((2, 3), keepdim=True)
    z = z * torch.rsqrt(z.square().mean((2, 3), keepdim=True) + eps)
    z = z * weight.to(wide)[:, None, None] + bias.to(wide)[:, None, None]
    # Subtracting the largest exponent cancels in the quotient and keeps the sums small.
    gate = torch.exp(gate_scale * torch.sigmoid(z) - gate_scale)
    pooled = F.avg_pool2d(gate * x.to(wide), kernel_size, stride, padding)
    return (pooled / F.avg_pool2d(gate, kernel_size, stride, padding)).to(x.dtype)


def _check(
    x: Tensor,
    logits: Tensor,
    weight: Tensor,
    bias: Tensor,
    gate_scale: float,
    kernel_size: int,
    stride: int,
    padding: int,
) -> None:
    if x.ndim != 4 or logits.shape != x.shape:
        raise ValueError(
            f"x and logits must be (R, C, H, W), got {tuple(x.shape)}, {tuple(logits.shape)}"
        )
    if logits.dtype != x.dtype or not x.is_floating_point():
        raise ValueError(f"x and logits must share a float dtype, got {x.dtype}, {logits.dtype}")
    if weight.shape != x.shape[1:2] or bias.shape != x.shape[1:2]:
        shapes = f"{tuple(weight.shape)}, {tuple(bias.shape)}"
        raise ValueError(f"weight and bias must be ({x.shape[1]},), got {shapes}")
    if not 0 < gate_scale <= MAX_GATE_SCALE:
        raise ValueError(f"gate_scale must lie in (0, {MAX_GATE_SCALE:g}], got {gate_scale}")
    if kernel_size < 1 or stride < 1 or not 0 <= padding <= kernel_size // 2:
        raise ValueError(
            "kernel_size and stride must be positive and padding at most half of kernel_size, "
            f"got {kernel_size}, {stride}, {padding}"
        )
    if min(x.shape[2:]) + 2 * padding < kernel_size or min(x.shape[2:]) < 1:
        raise ValueError(f"{tuple(x.shape[2:])} bins do not hold a window of {kernel_size}")


def _format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.stride(1) == 1 else torch.contiguous_format


@_library.register_fake("adaptive_pool")
def _(
    x: Tensor,
    logits: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    gate_scale: float,
    kernel_size: int,
    stride: int,
    padding: int,
) -> tuple[Tensor, Tensor, Tensor]:
    rois, channels, height, width = x.shape
    size = [(side + 2 * padding - kernel_size) // stride + 1 for side in (height, width)]
    out = x.new_empty((rois, channels, *size)).to(memory_format=_format(x))
    moment = x.new_empty((rois, channels), dtype=torch.promote_types(x.dtype, torch.float32))
    return out, moment, torch.empty_like(moment)


@_library.register_fake("adaptive_pool_backward")
def _(
    grad: Tensor,
    x: Tensor,
    logits: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gate_scale: float,
    kernel_size: int,
    stride: int,
    padding: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like_x = torch.empty_like(x, memory_format=_format(x))
    return like_x, torch.empty_like(like_x), torch.empty_like(weight), torch.empty_like(bias)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, logits, weight, bias, _, *ctx.options = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, logits, weight, bias, mean, rstd)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    grads = _library.op("adaptive_pool_backward")(grad, *ctx.saved_tensors, *ctx.options)
    return *grads, None, *(None for _ in ctx.options)


_library.register_autograd("adaptive_pool", _backward, _setup_context)
