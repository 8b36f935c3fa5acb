"""RoI pooling over all pyramid levels at once, with optional offsets (D2Det section 3.2).

Letters: L levels, N pictures, C channels, R RoIs, P bins a side, S samples a bin side, Q offset
cells a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from d2det_ops import _library

Sampling = Literal["deform", "align"]

MIN_ROI_SIDE = 0.1
"""Least side of a RoI in feature cells, of the official deformable kernel."""
_TWIN_ELEMENTS = (
    1 << 24
)  # gathered at a time, of the largest tensor the twin makes without autograd


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

    With a = 1 / stride, bin j, sample k, and shift t = offset_scale * offset of the bin, positions
    along an axis, in cells whose centres are 0, 1, ..., are

        deform:  x = j w/P + start + t w + k w/(P S)
                 start = round(x1) a - 0.5,    w = max((round(x2 - 1) + 1) a - 0.5 - start, 0.1)
        align:   x = start + j w/P + (k + 0.5) w/(P S)
                 start = x1 a,                 w = max(x2 a - start, 0)

    with `round` half away from zero. A bin is the mean of its S x S bilinear samples. "deform" is
    the official deformable rule: samples outside [-0.5, W - 0.5] x [-0.5, H - 0.5] do not count,
    and a bin without samples is 0. "align" is the official RoIAlign: samples outside [-1, W] x
    [-1, H] count as 0. Positions inside are clamped to the map. The gradient of an offset is the
    official kernel's: it sees the slope between the two cells around a sample, which is none where
    the sample is clamped or lies exactly on a cell.

    The compiled kernel reads channels-last maps; others are converted first, which costs as much as
    pooling some hundreds of RoIs.

    Args:
        features: L maps (N, C, H_l, W_l) float, of one dtype.
        rois: (R, 5) float, rows (picture index, x1, y1, x2, y2), half-open input pixels.
        levels: (R,) int64 in 0..L-1.
        strides: L input pixels per feature cell.
        output_size: P.  samples: S.
        offsets: (R, 2, Q, Q) float, channel 0 = x, 1 = y, P divisible by Q; bin i uses i * Q // P.
        offset_scale: offsets are in units of this fraction of the RoI's size.
        sampling: which rule; "align" takes no offsets.

    Returns:
        (R, C, P, P), dtype of the features, channels-last in memory; sums in float32 at least.
        Gradients flow to features (channels-last too) and offsets, none to rois.

    Raises:
        ValueError: for shapes and options that make no sense.
    """
    _check(features, rois, levels, strides, output_size, samples, offsets, sampling)
    wide = _accumulator(features[0])
    rois = rois.detach().to(wide)
    offsets = None if offsets is None else offsets.to(wide)
    if not _library.compiled("deform_roi_pool", features[0]):
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
    scales = [1 / stride for stride in strides]
    pooled: Tensor = _library.op("deform_roi_pool")(
        list(features), rois, levels, offsets, scales, output_size, samples, offset_scale,
        sampling == "align",
    )  # fmt: skip
    return pooled


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
    """Returns what `deform_roi_pool` returns, gathering the four neighbours of every sample."""
    channels, wide = features[0].shape[1], _accumulator(features[0])
    shift = None if offsets is None else offset_scale * offsets.to(wide)
    at_once = max(1, _TWIN_ELEMENTS // (channels * (output_size * samples) ** 2))
    rows, pooled = [], []
    for level, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        of_level = (levels == level).nonzero().flatten()
        if feature.numel() == 0:
            of_level = of_level[:0]
        for part in of_level.split(at_once):
            boxes = rois[part, 1:].detach().to(wide)
            x, y = (
                _positions(
                    boxes[:, axis::2],
                    1 / stride,
                    output_size,
                    samples,
                    None if shift is None else shift[part, axis],
                    axis,
                    sampling,
                )
                for axis in (0, 1)
            )
            rows.append(part)
            pooled.append(_gather(feature, rois[part, 0].long(), x, y, sampling))
    out = features[0].new_zeros(len(rois), output_size, output_size, channels)
    out = out.index_copy(0, torch.cat(rows), torch.cat(pooled).to(out.dtype))
    return out.permute(0, 3, 1, 2)


def _positions(
    corners: Tensor,
    scale: float,
    bins: int,
    samples: int,
    shift: Tensor | None,
    axis: int,
    sampling: Sampling,
) -> Tensor:
    """Returns (R, P, P, S) positions along `axis` (0 = x) of RoIs (R, 2), bins (row, column).

    corners: low and high pixel.  shift: (R, Q, Q) in RoI sizes. Operations are in the order of the
    kernels, so that samples on the border fall on the same side.
    """
    low, high = corners[:, :1], corners[:, 1:]
    index = torch.arange(bins, device=corners.device, dtype=corners.dtype)
    k = torch.arange(samples, device=corners.device, dtype=corners.dtype)
    if sampling == "align":
        start = low * scale
        size = (high * scale - start).clamp(min=0)
        inside_bin = (k + 0.5) * (size / bins) / samples
    else:
        # Official corners are inclusive, and rounded half away from zero.
        start = _round(low) * scale - 0.5
        size = ((_round(high - 1) + 1) * scale - 0.5 - start).clamp(min=MIN_ROI_SIDE)
        inside_bin = k * (size / bins / samples)
    first = index * (size / bins) + start  # (R, P)
    grid = (first[:, None, :] if axis == 0 else first[:, :, None]).expand(-1, bins, bins)
    if shift is not None:
        repeat = bins // shift.shape[-1]
        shift = shift.repeat_interleave(repeat, 1).repeat_interleave(repeat, 2)
        grid = grid + shift * size[:, :, None]
    return grid[..., None] + inside_bin[:, None, None, :]


def _gather(feature: Tensor, image: Tensor, x: Tensor, y: Tensor, sampling: Sampling) -> Tensor:
    """Returns the (R, P, P, C) means of bilinear samples of feature (N, C, H, W) at x, y."""
    _, channels, height, width = feature.shape
    # Widened before the gather, so that the gradients of a cell are summed wide as well.
    cells = feature.permute(0, 2, 3, 1).reshape(-1, channels).to(x.dtype)
    base = (image * height)[:, None, None, None]
    columns, kept_x = _neighbours(x, width, sampling)
    rows, kept_y = _neighbours(y, height, sampling)
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    for row, weight_y in rows:
        for column, weight_x in columns:
            at = ((base + row) * width)[..., :, None] + column[..., None, :]  # (R, P, P, S, S)
            weight = weight_y[..., :, None] * weight_x[..., None, :]
            total = total + cells[at] * weight[..., None]
    count = kept_y.sum(-1) * kept_x.sum(-1)
    return total.sum((3, 4)) / count.clamp(min=1)[..., None]


def _neighbours(
    position: Tensor, extent: int, sampling: Sampling
) -> tuple[tuple[tuple[Tensor, Tensor], ...], Tensor]:
    """Returns two (index, weight) around positions (...) on an axis, and which samples count."""
    if sampling == "align":
        inside = (position >= -1) & (position <= extent)
        counts = torch.ones_like(inside)
    else:
        inside = counts = (position >= -0.5) & (position <= extent - 0.5)
    position = torch.where(inside, position, 0).clamp(0, extent - 1)
    low = position.detach().floor()
    high = (low + 1).clamp(max=extent - 1) if sampling == "align" else position.detach().ceil()
    part = position - low
    return ((low.long(), (1 - part) * inside), (high.long(), part * inside)), counts


def _round(value: Tensor) -> Tensor:
    """Rounds half away from zero, as C does; torch.round goes half to even."""
    whole = value.trunc()
    return whole + value.sign() * ((value - whole).abs() >= 0.5)


def _accumulator(feature: Tensor) -> torch.dtype:
    return torch.promote_types(feature.dtype, torch.float32)


def _check(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    output_size: int,
    samples: int,
    offsets: Tensor | None,
    sampling: str,
) -> None:
    if not features or any(f.ndim != 4 or f.shape[:2] != features[0].shape[:2] for f in features):
        shapes = [tuple(f.shape) for f in features]
        raise ValueError(f"features must be one or more (N, C, H, W) of equal N, C, got {shapes}")
    if any(f.dtype != features[0].dtype for f in features) or not features[0].is_floating_point():
        raise ValueError(f"features must share a float dtype, got {[f.dtype for f in features]}")
    if len(strides) != len(features) or any(stride <= 0 for stride in strides):
        raise ValueError(f"{len(features)} features need as many strides, got {list(strides)}")
    if rois.ndim != 2 or rois.shape[1] != 5:
        raise ValueError(f"rois must be (R, 5), got {tuple(rois.shape)}")
    if levels.shape != rois.shape[:1] or levels.dtype != torch.int64:
        raise ValueError(f"levels must be (R,) int64, got {tuple(levels.shape)} {levels.dtype}")
    if output_size < 1 or samples < 1:
        raise ValueError(f"output_size and samples must be positive, got {output_size}, {samples}")
    if sampling not in ("deform", "align"):
        raise ValueError(f'sampling must be "deform" or "align", got {sampling!r}')
    if offsets is None:
        return
    if sampling == "align":
        raise ValueError('sampling "align" takes no offsets')
    cells = offsets.shape[-1] if offsets.ndim == 4 else 0
    if cells == 0 or offsets.shape != (rois.shape[0], 2, cells, cells) or output_size % cells:
        raise ValueError(
            f"offsets must be (R, 2, Q, Q) with output_size {output_size} divisible by Q, "
            f"got {tuple(offsets.shape)}"
        )


@_library.register_fake("deform_roi_pool")
def _(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    offsets: Tensor | None,
    scales: Sequence[float],
    output_size: int,
    samples: int,
    offset_scale: float,
    align: bool,
) -> Tensor:
    shape = (rois.shape[0], features[0].shape[1], output_size, output_size)
    return features[0].new_empty(shape).to(memory_format=torch.channels_last)


@_library.register_fake("deform_roi_pool_backward")
def _(
    grad: Tensor,
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    offsets: Tensor | None,
    scales: Sequence[float],
    output_size: int,
    samples: int,
    offset_scale: float,
    align: bool,
    deterministic: bool,
) -> tuple[list[Tensor], Tensor]:
    maps = [torch.empty_like(f, memory_format=torch.channels_last) for f in features]
    return maps, rois.new_empty(0) if offsets is None else offsets.new_empty(offsets.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, levels, offsets, *ctx.options = inputs
    ctx.save_for_backward(rois, levels, offsets, *features)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    rois, levels, offsets, *features = ctx.saved_tensors
    maps, moved = _library.op("deform_roi_pool_backward")(
        grad, features, rois, levels, offsets, *ctx.options,
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    unused = (None,) * len(ctx.options)
    return maps, None, None, None if offsets is None else moved, *unused


_library.register_autograd("deform_roi_pool", _backward, _setup_context)
