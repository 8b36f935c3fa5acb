"""Soft non-maximum suppression of all classes at once."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from d2det_ops import _library

Method = Literal["linear", "gaussian"]


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    method: Method = "linear",
    iou_threshold: float = 0.5,
    sigma: float = 0.5,
    min_score: float = 1e-3,
) -> Tensor:
    """Returns the scores after every picked box has lowered those it overlaps, class by class.

    Of each class the best remaining box is picked (ties: lower index), and every other remaining
    one's score is multiplied by 1 - IoU where IoU > iou_threshold ("linear"), or by
    exp(-IoU^2 / sigma) ("gaussian"). Entries at or below `min_score` drop out: they never pick.

    Args:
        boxes: (D, 4) float, half-open xyxy, shared by the classes.
        scores: (D, C) float; entries <= min_score take no part.
        method: "linear" (the official one) or "gaussian".
        iou_threshold: of "linear".  sigma: of "gaussian".
        min_score: scores at or below it become 0.

    Returns:
        (D, C) rescored, dtype of scores, 0 where dropped.
    """
    _check(boxes, scores, method, iou_threshold, sigma, min_score)
    # One dtype of at least float32, whatever autocast says.
    wide = torch.promote_types(torch.promote_types(boxes.dtype, scores.dtype), torch.float32)
    corners, values = boxes.detach().to(wide), scores.detach().to(wide)
    if (device := _library.placement("soft_nms", boxes)) is None:
        rescored = soft_nms_reference(
            corners,
            values,
            method=method,
            iou_threshold=iou_threshold,
            sigma=sigma,
            min_score=min_score,
        )
    else:
        rescored = _library.op("soft_nms")(
            corners.to(device),
            values.to(device),
            method == "gaussian",
            iou_threshold,
            sigma,
            min_score,
        )
    return rescored.to(scores.device, scores.dtype)


def soft_nms_reference(
    boxes: Tensor,
    scores: Tensor,
    *,
    method: Method = "linear",
    iou_threshold: float = 0.5,
    sigma: float = 0.5,
    min_score: float = 1e-3,
) -> Tensor:
    """Returns what `soft_nms` returns, one pick of every class at a time, with D x D memory."""
    current = torch.where(scores > min_score, scores, 0)
    remaining = current > 0
    decay = _decay(boxes, method, iou_threshold, sigma).to(scores.dtype)
    columns = torch.arange(scores.shape[1], device=scores.device)
    for _ in range(len(boxes)):
        if not bool(remaining.any()):
            break
        pick = torch.where(remaining, current, -1).argmax(0)  # (C,)
        remaining[pick, columns] = False
        lowered = current * decay[:, pick]
        current = torch.where(remaining, torch.where(lowered > min_score, lowered, 0), current)
        remaining &= current > 0
    return current


def _decay(boxes: Tensor, method: Method, iou_threshold: float, sigma: float) -> Tensor:
    """Returns the (D, D) factors by which one box lowers another."""
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    iou = torch.where(shared > 0, shared / (area[:, None] + area[None, :] - shared), 0)
    if method == "gaussian":
        return torch.where(iou > 0, torch.exp(-iou.square() / sigma), 1)
    return torch.where(iou > iou_threshold, 1 - iou, 1)


def _check(
    boxes: Tensor,
    scores: Tensor,
    method: str,
    iou_threshold: float,
    sigma: float,
    min_score: float,
) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (D, 4), got {tuple(boxes.shape)}")
    if scores.ndim != 2 or scores.shape[0] != boxes.shape[0]:
        raise ValueError(f"scores {tuple(scores.shape)} do not fit boxes {tuple(boxes.shape)}")
    if method not in ("linear", "gaussian"):
        raise ValueError(f'method must be "linear" or "gaussian", got {method!r}')
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie in [0, 1], got {iou_threshold}")
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    if not min_score >= 0:
        raise ValueError(f"min_score must not be negative, got {min_score}")


@_library.register_fake("soft_nms")
def _(
    boxes: Tensor,
    scores: Tensor,
    gaussian: bool,
    iou_threshold: float,
    sigma: float,
    min_score: float,
) -> Tensor:
    return scores.new_empty(scores.shape)
