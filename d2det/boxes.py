"""All box algebra, and the one place that knows the official coordinate convention.

Boxes are (x1, y1, x2, y2) in absolute pixels, half-open: x2 - x1 is the width. The official code
counts x2, y2 as the last covered pixel ("+1 boxes"). A box of ours is the same box with x2, y2
larger by one, so IoU, NMS, delta coding and FPN level mapping are plain algebra on ours, and the
convention shows only in the functions under "Official convention" below. Nowhere else may a
+ 1 or - 1 on a coordinate appear.

Letters: ... any leading dimensions, A and B numbers of boxes, R numbers of RoIs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_RATIO = math.log(1000 / 16)
"""Largest |dw|, |dh| that is decoded (1000 / 16, the official clamp): a box grows at most 62.5x."""

# --- plain algebra -----------------------------------------------------------------------------


def areas(boxes: Tensor) -> Tensor:
    """Returns the areas, (...,), of boxes (..., 4); inverted sides count as negative."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Returns the (A, B) intersection over union of boxes (A, 4) with others (B, 4); 0 if empty."""
    overlap = _pairwise_intersection(boxes, others)
    union = areas(boxes)[:, None] + areas(others)[None, :] - overlap
    return torch.where(union > 0, overlap / union.clamp(min=torch.finfo(union.dtype).tiny), 0)


def elementwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Returns the (...,) intersection over union of boxes (..., 4) with others (..., 4), in pairs.

    The union is not guarded: callers give boxes of positive area, or clamp the result.
    """
    sides = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(
        boxes[..., :2], others[..., :2]
    )
    overlap = sides.clamp(min=0).prod(-1)
    return overlap / (areas(boxes) + areas(others) - overlap)


def flip_horizontal(boxes: Tensor, width: float) -> Tensor:
    """Returns boxes (..., 4) mirrored in a frame `width` pixels wide."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((width - x2, y1, width - x1, y2), -1)


def flip_vertical(boxes: Tensor, height: float) -> Tensor:
    """Returns boxes (..., 4) turned upside down in a frame `height` pixels high."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((x1, height - y2, x2, height - y1), -1)


def encode_deltas(boxes: Tensor, reference: Tensor) -> Tensor:
    """Returns (..., 4) rows (dx, dy, dw, dh) that move `reference` onto `boxes`, both (..., 4)."""
    size, reference_size = boxes[..., 2:] - boxes[..., :2], reference[..., 2:] - reference[..., :2]
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    reference_centre = (reference[..., :2] + reference[..., 2:]) / 2
    shift = (centre - reference_centre) / reference_size
    return torch.cat((shift, torch.log(size / reference_size)), -1)


def decode_deltas(deltas: Tensor, reference: Tensor) -> Tensor:
    """Returns boxes (..., 4): the inverse of `encode_deltas`, growth limited to MAX_LOG_RATIO."""
    reference_size = reference[..., 2:] - reference[..., :2]
    centre = (reference[..., :2] + reference[..., 2:]) / 2 + deltas[..., :2] * reference_size
    half = reference_size * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() / 2
    return torch.cat((centre - half, centre + half), -1)


def _pairwise_intersection(boxes: Tensor, others: Tensor) -> Tensor:
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    sides = (high - low).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


# --- Official convention -------------------------------------------------------------------------
# Where inclusive coordinates, or their pixel centres, leave a trace that algebra does not cancel.


def clip(boxes: Tensor, height: Tensor | float, width: Tensor | float) -> Tensor:
    """Returns boxes (..., 4) clipped to the picture as the official code does.

    Inclusive corners are clamped to [0, width - 1], so x1 never passes the last pixel and even a
    box far outside keeps one pixel. height, width: numbers, or tensors that broadcast with (...).
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    width = torch.as_tensor(width, dtype=boxes.dtype, device=boxes.device)
    height = torch.as_tensor(height, dtype=boxes.dtype, device=boxes.device)
    one, zero = torch.ones_like(width), torch.zeros_like(width)
    return torch.stack(
        (
            x1.clamp(zero, width - 1),
            y1.clamp(zero, height - 1),
            x2.clamp(one, width),
            y2.clamp(one, height),
        ),
        -1,
    )


def rescale(boxes: Tensor, factor: float) -> Tensor:
    """Returns boxes (..., 4) as they lie in the picture resized by `factor`.

    Inclusive corners are multiplied, in training as in inference. Resizing by 1 / factor undoes it.
    """
    return torch.cat((boxes[..., :2] * factor, (boxes[..., 2:] - 1) * factor + 1), -1)


def base_anchors(stride: int, scale: float, ratios: tuple[float, ...]) -> Tensor:
    """Returns the (len(ratios), 4) float32 anchors of the cell at the origin, half-open.

    Side lengths stride * scale / sqrt(r) by stride * scale * sqrt(r) around (stride - 1) / 2, with
    inclusive corners rounded half to even (d2det.md 3; ratios are height over width).
    """
    ratio = torch.tensor(ratios, dtype=torch.float32)
    size = torch.stack((1 / ratio.sqrt(), ratio.sqrt()), -1) * stride * scale
    centre = (stride - 1) / 2
    low = (centre - (size - 1) / 2).round()
    high = (centre + (size - 1) / 2).round() + 1
    return torch.cat((low, high), -1)


def regression_size(boxes: Tensor) -> Tensor:
    """Returns the (..., 2) width and height that dense local regression scales by.

    The released head measures inclusive corners without their + 1, so one less than the width.
    """
    return boxes[..., 2:] - boxes[..., :2] - 1


def from_inclusive(boxes: Tensor) -> Tensor:
    """Returns half-open boxes (..., 4) of boxes whose x2, y2 are the last covered pixel."""
    return torch.cat((boxes[..., :2], boxes[..., 2:] + 1), -1)


def to_inclusive(boxes: Tensor) -> Tensor:
    """Returns boxes (..., 4) whose x2, y2 are the last covered pixel: undoes `from_inclusive`."""
    return torch.cat((boxes[..., :2], boxes[..., 2:] - 1), -1)


def jittered(boxes: Tensor, noise: Tensor, *, height: Tensor, width: Tensor) -> Tensor:
    """Returns boxes (R, 4) moved and scaled by `noise`, clipped to the picture.

    noise: (R, 4) fractions (dx, dy, dw, dh) of the box's `regression_size`.
    height, width: (R,) pixels of the picture each box lies in.
    """
    size = regression_size(boxes)
    centre = boxes[:, :2] + size / 2 + size * noise[:, :2]
    half = size * (1 + noise[:, 2:]) / 2
    return clip(from_inclusive(torch.cat((centre - half, centre + half), -1)), height, width)


def pixel_rectangles(boxes: Tensor) -> Tensor:
    """Returns the (R, 4) int64 rectangles (x, y, width, height) of pixels under boxes (R, 4).

    As the released code crops masks: inclusive corners truncated to integers, at least one pixel.
    """
    low, last = to_inclusive(boxes).long().split(2, -1)
    return torch.cat((low, (last - low + 1).clamp(min=1)), -1)
