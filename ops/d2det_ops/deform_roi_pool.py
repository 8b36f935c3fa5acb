"""RoI pooling over all pyramid levels at once, with optional offsets (d2det.md 6.1 and 7).

Letters: L levels, N pictures, C channels, R RoIs, P bins a side, S samples a bin side, Q offset
cells a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Sampling = Literal["deform", "align"]
MIN_ROI_SIDE = 0.1  # feature cells, of the official deformable kernel


def deform_roi_pool(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    *,
    strides: Sequence[int],
    output_size: int,
    samples: int,
    offsets: Tensor | None = None,
    offset_scale: float = 0.1,
    sampling: Sampling = "deform",
) -> Tensor:
    """Returns each RoI's features on a P x P grid, read from the pyramid level it belongs to.

    "deform" is the official deformable rule: RoIs rounded to pixels, shifted by half a cell,
    samples at bin starts, moved by `offset_scale * offset * RoI size`; samples outside the map do
    not count. "align" is the official RoIAlign: samples at bin fractions, outside reads as 0.

    Args:
        features: L maps (N, C, H_l, W_l) float.
        rois: (R, 5) float, rows (picture index, x1, y1, x2, y2), half-open input pixels.
        levels: (R,) int64 in 0..L-1.
        strides: L input pixels per feature cell.
        output_size: P.  samples: S.
        offsets: (R, 2, Q, Q), channel 0 = x, 1 = y, P divisible by Q; bin i uses cell i*Q//P.
        offset_scale: offsets are in units of this fraction of the RoI's size.
        sampling: which rule; "align" takes no offsets.

    Returns:
        (R, C, P, P). Gradients flow to features and offsets, none to rois.
    """
    return deform_roi_pool_reference(
        features,
        rois,
        levels,
        strides=strides,
        output_size=output_size,
        samples=samples,
        offsets=offsets,
        offset_scale=offset_scale,
        sampling=sampling,
    )


def deform_roi_pool_reference(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    *,
    strides: Sequence[int],
    output_size: int,
    samples: int,
    offsets: Tensor | None = None,
    offset_scale: float = 0.1,
    sampling: Sampling = "deform",
) -> Tensor:
    """Returns what `deform_roi_pool` returns, gathering four neighbours of every sample."""
    out = features[0].new_zeros(len(rois), features[0].shape[1], output_size, output_size)
    for level, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        rows = (levels == level).nonzero().flatten()
        moved = None if offsets is None else offsets[rows]
        x, y = _sample_points(
            rois[rows], stride, output_size, samples, moved, offset_scale, sampling
        )
        pooled = _gather(feature, rois[rows, 0].long(), x, y, sampling)
        out = out.index_copy(0, rows, pooled.to(out.dtype))
    return out


def _sample_points(
    rois: Tensor,
    stride: int,
    bins: int,
    samples: int,
    offsets: Tensor | None,
    offset_scale: float,
    sampling: Sampling,
) -> tuple[Tensor, Tensor]:
    """Returns x, y, each (R, P, P, S, S): bins (row, column) and samples (row, column)."""
    boxes = rois[:, 1:].to(torch.promote_types(rois.dtype, torch.float32))
    if sampling == "deform":
        # Rounds the official inclusive corners half away from zero, then makes them half-open.
        low, high = _round(boxes[:, :2]), _round(boxes[:, 2:] - 1) + 1
        start = low / stride - 0.5
        size = ((high - low) / stride).clamp(min=MIN_ROI_SIDE)
        phase = torch.arange(samples, device=rois.device) / samples
    else:
        start = boxes[:, :2] / stride
        size = ((boxes[:, 2:] - boxes[:, :2]) / stride).clamp(min=0)
        phase = (torch.arange(samples, device=rois.device) + 0.5) / samples
    step = (torch.arange(bins, device=rois.device)[:, None] + phase) / bins  # (P, S)
    along = start[:, :, None, None] + size[:, :, None, None] * step.to(boxes.dtype)  # (R, 2, P, S)
    x = along[:, 0, None, :, None, :].expand(-1, bins, -1, samples, -1)
    y = along[:, 1, :, None, :, None].expand(-1, -1, bins, -1, samples)
    if offsets is not None:
        repeat = bins // offsets.shape[-1]
        shift = offset_scale * offsets.to(boxes.dtype) * size[:, :, None, None]
        shift = shift.repeat_interleave(repeat, 2).repeat_interleave(repeat, 3)[..., None, None]
        x, y = x + shift[:, 0], y + shift[:, 1]
    return x, y


def _gather(feature: Tensor, image: Tensor, x: Tensor, y: Tensor, sampling: Sampling) -> Tensor:
    """Returns the (R, C, P, P) means of bilinear samples of feature (N, C, H, W) at x, y."""
    _, channels, height, width = feature.shape
    margin = 0.5 if sampling == "deform" else 1.0
    past = margin - 1 if sampling == "deform" else 0.0
    inside = (x >= -margin) & (x <= width + past) & (y >= -margin) & (y <= height + past)
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    left, top = x.detach().floor().long(), y.detach().floor().long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    fx, fy = x - left, y - top
    flat = feature.permute(0, 2, 3, 1).reshape(-1, channels)
    base = image[:, None, None, None, None] * height

    def tap(row: Tensor, column: Tensor, weight: Tensor) -> Tensor:
        value = flat[(base + row) * width + column]
        return value.to(weight.dtype) * (weight * inside)[..., None]

    total = tap(top, left, (1 - fy) * (1 - fx)) + tap(top, right, (1 - fy) * fx)
    total = total + tap(bottom, left, fy * (1 - fx)) + tap(bottom, right, fy * fx)
    # The deformable rule averages the samples inside the map, RoIAlign all of them.
    counted = inside if sampling == "deform" else torch.ones_like(inside)
    mean = total.sum((3, 4)) / counted.sum((3, 4)).clamp(min=1)[..., None]
    return mean.permute(0, 3, 1, 2)


def _round(value: Tensor) -> Tensor:
    """Rounds half away from zero, as C does; torch.round goes half to even."""
    return torch.sign(value) * torch.floor(value.abs() + 0.5)
