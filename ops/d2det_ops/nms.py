"""Greedy non-maximum suppression whose cost follows the number of boxes, not its square."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from d2det_ops import _library

Metric = Literal["iou", "ios"]


def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    groups: Tensor | None = None,
    metric: Metric = "iou",
    max_keep: int | None = None,
) -> Tensor:
    """Returns the indices of the boxes that greedy suppression keeps, best score first.

    Walking boxes by falling score (ties: lower index first, NaN before all), a box is kept unless
    a kept one of its group overlaps it by more than `iou_threshold`. The same indices in the same
    order as torchvision.ops.nms. Exact: the compiled kernel looks only at kept boxes near enough
    to matter, found in a hash grid with one layer per size octave, O(N log N + N * local density).

    Args:
        boxes: (N, 4) float, half-open xyxy of one frame. Boxes without area are always kept.
        scores: (N,) float.
        iou_threshold: in [0, 1].
        groups: (N,) int64; boxes of different groups never suppress each other. None: one group.
        metric: "iou", or "ios": intersection over the smaller of the two areas.
        max_keep: at most this many are kept. None: no limit.

    Returns:
        (K,) int64.

    Raises:
        ValueError: for shapes, thresholds or limits that make no sense.
    """
    _check(boxes, scores, iou_threshold, groups, metric, max_keep)
    # One dtype of at least float32, as torchvision computes under autocast.
    wide = torch.promote_types(torch.promote_types(boxes.dtype, scores.dtype), torch.float32)
    boxes, scores = boxes.detach().to(wide), scores.detach().to(wide)
    if (device := _library.placement("nms", boxes)) is None:
        return nms_reference(
            boxes, scores, iou_threshold, groups=groups, metric=metric, max_keep=max_keep
        )
    kept: Tensor = _library.op("nms")(
        boxes.to(device),
        scores.to(device),
        None if groups is None else groups.to(device),
        iou_threshold,
        metric == "ios",
        -1 if max_keep is None else max_keep,
    )
    return kept.to(boxes.device)


def nms_reference(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    groups: Tensor | None = None,
    metric: Metric = "iou",
    max_keep: int | None = None,
) -> Tensor:
    """Returns what `nms` returns, by comparing each kept box with all that are left."""
    order = scores.sort(descending=True, stable=True).indices
    kept: list[Tensor] = []
    while len(order) and (max_keep is None or len(kept) < max_keep):
        best, rest = order[0], order[1:]
        kept.append(best)
        suppressed = _overlap(boxes[best], boxes[rest], metric).double() > iou_threshold
        if groups is not None:
            suppressed &= groups[rest] == groups[best]
        order = rest[~suppressed]
    return torch.stack(kept) if kept else order[:0]


def _overlap(box: Tensor, others: Tensor, metric: Metric) -> Tensor:
    """Returns the (M,) overlaps of box (4,) with others (M, 4), NaN where both lack area."""
    sides = torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])
    shared = sides.clamp(min=0).prod(-1)
    area = (box[2:] - box[:2]).prod(-1)
    areas = (others[:, 2:] - others[:, :2]).prod(-1)
    return shared / (torch.minimum(area, areas) if metric == "ios" else area + areas - shared)


def _check(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    groups: Tensor | None,
    metric: str,
    max_keep: int | None,
) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (N, 4), got {tuple(boxes.shape)}")
    if scores.shape != boxes.shape[:1]:
        raise ValueError(f"scores {tuple(scores.shape)} do not fit boxes {tuple(boxes.shape)}")
    if groups is not None and (groups.shape != scores.shape or groups.dtype != torch.int64):
        raise ValueError(f"groups must be (N,) int64, got {tuple(groups.shape)} {groups.dtype}")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie in [0, 1], got {iou_threshold}")
    if metric not in ("iou", "ios"):
        raise ValueError(f'metric must be "iou" or "ios", got {metric!r}')
    if max_keep is not None and max_keep < 0:
        raise ValueError(f"max_keep must not be negative, got {max_keep}")


@_library.register_fake("nms")
def _(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    threshold: float,
    over_smaller: bool,
    max_keep: int,
) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)
