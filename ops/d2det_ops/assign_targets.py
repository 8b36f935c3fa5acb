"""Which ground truth each box overlaps most, and which boxes fit a ground truth best.

Letters: A boxes (anchors or proposals), G ground truths of one picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from d2det_ops import _library

BYTES_PER_PAIR = 48
"""Peak of the twin's IoU and comparisons, in float32 and for one (box, ground truth)."""


class Overlaps(NamedTuple):
    """What the ground truths of a picture are to each of A boxes.

    iou: (A,) float, the largest overlap with any ground truth, 0 where below the floor.
    best: (A,) int64, the ground truth it belongs to (the first of equals), -1 where iou is 0.
    tied: (A,) int64, the last ground truth that no box overlaps more than this one, if that is at
        least `tie_iou`; else -1.
    """

    iou: Tensor
    best: Tensor
    tied: Tensor


def assign_targets(
    boxes: Tensor, gt_boxes: Tensor, *, floor_iou: float, tie_iou: float, max_bytes: int = 64 << 20
) -> Overlaps:
    """Returns each box's best ground truth, and the one it is the best box of.

    Exact, with memory that follows A + G. Only overlaps of at least `floor_iou` count. Compiled,
    a box asks a grid for the few ground truths near it and of its size, so 10 000 of them cost
    little more than 10; the twin, which also serves GPUs, goes through blocks of `max_bytes`.

    Args:
        boxes: (A, 4) float, half-open xyxy.
        gt_boxes: (G, 4) float, same frame.
        floor_iou: overlaps below it read as 0; in [0, 1], as `tie_iou`.
        tie_iou: least overlap of a best box.
        max_bytes: memory of the twin's IoU blocks; changes no result.

    Raises:
        ValueError: for shapes or a floor that make no sense.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or gt_boxes.ndim != 2 or gt_boxes.shape[1] != 4:
        raise ValueError(
            f"boxes and gt_boxes must be (., 4), got {tuple(boxes.shape)}, {tuple(gt_boxes.shape)}"
        )
    if not (0 <= floor_iou <= 1 and 0 <= tie_iou <= 1):
        raise ValueError(f"floor_iou and tie_iou must lie in [0, 1], got {floor_iou}, {tie_iou}")
    wide = torch.promote_types(torch.promote_types(boxes.dtype, gt_boxes.dtype), torch.float32)
    boxes, gt_boxes = boxes.detach().to(wide), gt_boxes.detach().to(wide)
    if not _library.compiled("assign_targets", boxes):
        return assign_targets_reference(
            boxes, gt_boxes, floor_iou=floor_iou, tie_iou=tie_iou, max_bytes=max_bytes
        )
    return Overlaps(*_library.op("assign_targets")(boxes, gt_boxes, floor_iou, tie_iou))


def assign_targets_reference(
    boxes: Tensor, gt_boxes: Tensor, *, floor_iou: float, tie_iou: float, max_bytes: int = 64 << 20
) -> Overlaps:
    """Returns what `assign_targets` returns, from all overlaps of one block of boxes at a time."""
    found = Overlaps(
        boxes.new_zeros(len(boxes)),
        torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device),
        torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device),
    )
    if len(boxes) == 0 or len(gt_boxes) == 0:
        return found
    num_rows = max(1, max_bytes // (BYTES_PER_PAIR * len(gt_boxes)))
    # One block is kept for the second pass; many are computed again, bit for bit the same.
    blocks = _blocks(boxes, gt_boxes, num_rows, floor_iou)
    kept = list(blocks) if num_rows >= len(boxes) else None
    best_of_gt = boxes.new_zeros(len(gt_boxes))
    for rows, near, iou in blocks if kept is None else kept:
        value, index = iou.max(1)
        found.iou[rows] = value
        found.best[rows] = torch.where(value > 0, near[index], -1)
        best_of_gt[near] = torch.maximum(best_of_gt[near], iou.amax(0))
    for rows, near, iou in kept or _blocks(boxes, gt_boxes, num_rows, floor_iou):
        tied = (iou > 0) & (iou >= tie_iou) & (iou == best_of_gt[near])
        found.tied[rows] = torch.where(tied, near, -1).amax(1)
    return found


def _blocks(
    boxes: Tensor, gt_boxes: Tensor, num_rows: int, floor_iou: float
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yields (rows, near, iou) for `num_rows` boxes at a time: iou is (num_rows, len(near)).

    Ground truths away from all boxes of a block are left out: neighbouring anchors are neighbours
    in memory, so of 10 000 objects a block sees a few hundred.
    """
    everything = torch.arange(len(gt_boxes), device=boxes.device)
    for start in range(0, len(boxes), num_rows):
        rows = slice(start, min(start + num_rows, len(boxes)))
        block, near = boxes[rows], everything
        if num_rows < len(boxes):
            low, high = block[:, :2].amin(0), block[:, 2:].amax(0)
            touching = (gt_boxes[:, :2] < high) & (gt_boxes[:, 2:] > low)
            near = everything[touching.all(1)]
        if len(near):
            iou = _pairwise_iou(block, gt_boxes[near])
            yield rows, near, torch.where(iou >= floor_iou, iou, 0)


def _pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    sides = (torch.minimum(boxes[:, None, 2:], others[None, :, 2:]) - low).clamp(min=0)
    shared = sides[..., 0] * sides[..., 1]
    area, other_area = ((b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, others))
    return torch.where(shared > 0, shared / (area[:, None] + other_area - shared), 0)


@_library.register_fake("assign_targets")
def _(
    boxes: Tensor, gt_boxes: Tensor, floor_iou: float, tie_iou: float
) -> tuple[Tensor, Tensor, Tensor]:
    best = boxes.new_empty(boxes.shape[0], dtype=torch.int64)
    return boxes.new_empty(boxes.shape[0]), best, torch.empty_like(best)
