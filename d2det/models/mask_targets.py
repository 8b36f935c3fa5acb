"""What sampled boxes are to predict, where ground truths are masks; no canvas is ever made.

Letters: R RoIs, G ground truths of all pictures together, M = 28 mask pixels and S = 7 cells per
side, P mask pixels kept in all.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from d2det.boxes import pixel_rectangles
from d2det.models.masks import MASK_SIZE
from d2det.models.roi_pooling import ROI_SIZE
from d2det.structures import CroppedMasks

RELEASED_LOGIT = 0.5
"""Mask pixels above this *logit* count as predicted in the mask IoU (released code)."""

_EPS = 1e-7  # of the released code
_FIXED_POINT = 1 << 11  # OpenCV's weights of 8-bit bilinear resizing have 11 fractional bits


def joined(masks: Sequence[CroppedMasks]) -> CroppedMasks:
    """Returns the masks of at least one picture in one, object after object.

    A spare pixel at the end keeps every index valid even where no object has one.
    """
    offsets = itertools.accumulate((len(part.pixels) for part in masks), initial=0)
    starts = [part.starts + offset for part, offset in zip(masks, offsets, strict=False)]
    pixels = [part.pixels for part in masks]
    return CroppedMasks(
        pixels=F.pad(torch.cat(pixels), (0, 1)),
        rectangles=torch.cat([part.rectangles for part in masks]),
        starts=torch.cat(starts),
    )


def mask_targets(
    masks: CroppedMasks,
    owners: Tensor,
    boxes: Tensor,
    *,
    rounding: Literal["exact", "released"] = "exact",
) -> Tensor:
    """Returns (R, M, M) bool: the masks in the boxes, resized to M x M.

    "exact" reads the mask bilinearly at the centre of each target pixel of the very box, zero
    beyond the mask, and sets the pixel where that is at least one half: the inverse of how
    `masks_to_rle` pastes, so nothing is learnt half a pixel off. "released" crops at whole pixels,
    corners truncated, repeats the edge of the crop, and resizes with the 8-bit arithmetic of the
    released code, bit for bit: masks move by half a pixel and lose as much at slanted edges.

    Args:
        masks: G masks.
        owners: (R,) int64, the mask of each box.
        boxes: (R, 4) float, in pixels of the pictures.
        rounding: of boxes and of the interpolated mask.
    """
    if rounding == "exact":
        columns, column_weight = _exact_taps(boxes[:, 0], boxes[:, 2])
        rows, row_weight = _exact_taps(boxes[:, 1], boxes[:, 3])
    else:
        x, y, width, height = pixel_rectangles(boxes).unbind(1)
        columns, column_weight = _released_taps(x, width)
        rows, row_weight = _released_taps(y, height)
    pixels = _look_up(masks, owners, columns.flatten(1), rows.flatten(1))
    corners = pixels.view(-1, MASK_SIZE, 2, MASK_SIZE, 2)
    column_weight, row_weight = column_weight[:, None, None], row_weight[:, :, None]
    if rounding == "exact":
        lines = (corners * column_weight).sum(-1)
        return (lines.transpose(-1, -2) * row_weight).sum(-1) >= 0.5
    lines = (corners * (column_weight * _FIXED_POINT).round().int()).sum(-1, dtype=torch.int32)
    weighted = (row_weight * _FIXED_POINT).round().int() * (lines.transpose(-1, -2) >> 4) >> 16
    return (weighted.sum(-1) + 2) >> 2 > 0


def overlap_cells_of_masks(targets: Tensor) -> Tensor:
    """Returns (R, S, S) bool: cells on the object, from mask targets (R, M, M) bool.

    A cell counts if three of the four mask pixels in its middle do.
    """
    factor = ROI_SIZE / MASK_SIZE
    cells = F.interpolate(targets[:, None].float(), scale_factor=factor, mode="bilinear")
    return cells[:, 0] > 0.5


def mask_iou_targets(
    logits: Tensor, targets: Tensor, masks: CroppedMasks, owners: Tensor, boxes: Tensor
) -> Tensor:
    """Returns the (R,) float32 IoU of predicted masks with whole ground truths, 0..1.

    The object's part outside the box counts: its area, in mask pixels of the box, is the target's
    area over the share of the object's pixels that lie in the box.

    Args:
        logits: (R, M, M) float, predicted.
        targets: (R, M, M) bool of `mask_targets`.
        masks: G masks.
        owners: (R,) int64, the mask of each box.
        boxes: (R, 4) float.
    """
    predicted = logits.detach() > RELEASED_LOGIT
    inside, whole = _pixel_counts(masks, owners, pixel_rectangles(boxes))
    share = inside / (whole + _EPS)
    area = targets.sum((1, 2)) / (share + _EPS)
    overlap = (predicted & targets).sum((1, 2))
    union = (predicted.sum((1, 2)) + area - overlap).abs()
    return (overlap / (union + _EPS)).clamp(min=0)


def _exact_taps(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """(R, M, 2) pixels that interpolate each target pixel between `low` and `high` (R,), weights.

    A pixel's value stands at its centre.
    """
    steps = _centres(low.device) / MASK_SIZE
    position = low[:, None].double() + steps * (high - low)[:, None].double() - 0.5
    first = position.floor()
    weight = (position - first).float()
    return torch.stack((first, first + 1), -1).long(), torch.stack((1 - weight, weight), -1)


def _released_taps(start: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """(R, M, 2) pixels that interpolate each target pixel of crops at `start` (R,), and weights."""
    position = (_centres(sizes.device) * (sizes[:, None].double() / MASK_SIZE) - 0.5).float()
    low = position.floor()
    weight = position - low
    index = torch.stack((low, low + 1), -1).long().clamp(min=0)
    last = sizes[:, None, None] - 1
    return start[:, None, None] + torch.minimum(index, last), torch.stack((1 - weight, weight), -1)


def _centres(device: torch.device) -> Tensor:
    """(M,) float64 centres of the target pixels, in target pixels."""
    return torch.arange(MASK_SIZE, dtype=torch.float64, device=device) + 0.5


def _look_up(masks: CroppedMasks, owners: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """(R, Y, X) uint8 values of the masks at columns (R, X) and rows (R, Y) of the pictures."""
    x, y, width, height = masks.rectangles[owners, :, None].unbind(1)
    columns, rows = columns - x, rows - y
    in_columns = (columns >= 0) & (columns < width)
    in_rows = (rows >= 0) & (rows < height)
    inside = in_rows[:, :, None] & in_columns[:, None, :]
    line = masks.starts[owners, None] + rows * width
    index = torch.where(inside, line[:, :, None] + columns[:, None, :], 0)
    return masks.pixels[index] * inside


def _pixel_counts(masks: CroppedMasks, owners: Tensor, rectangles: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) int64 pixels of each mask inside its rectangle (R, 4), and in all.

    Differences of running sums at both ends of each row the two rectangles share.
    """
    running = F.pad(masks.pixels.cumsum(0, dtype=torch.int32), (1, 0)).long()
    low, size = masks.rectangles[owners].split(2, 1)
    start = masks.starts[owners]
    corner = rectangles[:, :2] - low
    first = torch.minimum(corner.clamp(min=0), size)
    end = torch.minimum((corner + rectangles[:, 2:]).clamp(min=0), size)
    num_rows = (end - first)[:, 1]
    roi = torch.arange(len(owners), device=owners.device).repeat_interleave(num_rows)
    row = torch.arange(len(roi), device=owners.device) - (num_rows.cumsum(0) - num_rows)[roi]
    line = start[roi] + (first[roi, 1] + row) * size[roi, 0]
    in_row = running[line + end[roi, 0]] - running[line + first[roi, 0]]
    inside = torch.zeros_like(start).index_add(0, roi, in_row)
    return inside, running[start + size.prod(1)] - running[start]
