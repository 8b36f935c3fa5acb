"""Which ground truth each box overlaps most, and which boxes fit a ground truth best.

Letters: N pictures, each with A boxes (anchors or proposals) and G ground truths.
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
    """What the ground truths of a picture are to each of its boxes, (A,) or (N, A).

    iou: float, the largest overlap with any ground truth, 0 where below the floor.
    best: int64, the ground truth it belongs to (the first of equals), -1 where iou is 0.
    tied: int64, the last ground truth that no box overlaps more than this one, if that is at least
        `tie_iou`; else -1.
    """

    iou: Tensor
    best: Tensor
    tied: Tensor


def assign_targets(
    boxes: Tensor, gt_boxes: Tensor, *, floor_iou: float, tie_iou: float, max_bytes: int = 64 << 20
) -> Overlaps:
    """Returns each box's best ground truth, and the one it is the best box of.

    Exact, with memory that follows A + G. Only overlaps of at least `floor_iou` count, and a box
    without area has none: such rows fill up pictures that have fewer than others. Compiled for a
    CPU, a box asks a grid for the few ground truths near it and of its size, so 10 000 of them cost
    little more than 10; on a GPU all pictures take two launches; the twin goes through blocks of
    `max_bytes`.

    Args:
        boxes: (A, 4) or (N, A, 4) float, half-open xyxy.
        gt_boxes: (G, 4) or (N, G, 4) float, same frame.
        floor_iou: overlaps below it read as 0; in [0, 1], as `tie_iou`.
        tie_iou: least overlap of a best box.
        max_bytes: memory of the twin's IoU blocks; changes no result.

    Raises:
        ValueError: for shapes or a floor that make no sense.
    """
    shapes = tuple(boxes.shape), tuple(gt_boxes.shape)
    if {len(shape) for shape in shapes} not in ({2}, {3}) or any(s[-1] != 4 for s in shapes):
        raise ValueError(f"boxes and gt_boxes must both be (., 4) or (N, ., 4), got {shapes}")
    if shapes[0][:-2] != shapes[1][:-2]:
        raise ValueError(f"boxes and gt_boxes must be of as many pictures, got {shapes}")
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
    shape = boxes.shape[:-1]
    found = Overlaps(
        boxes.new_zeros(shape),
        torch.full(shape, -1, dtype=torch.int64, device=boxes.device),
        torch.full(shape, -1, dtype=torch.int64, device=boxes.device),
    )
    if boxes.shape[-2] and gt_boxes.shape[-2]:
        num_rows = max(1, max_bytes // (BYTES_PER_PAIR * gt_boxes.shape[-2]))
        columns = (x.view(-1, *x.shape[boxes.ndim - 2 :]) for x in (boxes, gt_boxes, *found))
        for picture, gts, *parts in zip(*columns, strict=True):
            _assign(picture, gts, Overlaps(*parts), floor_iou, tie_iou, num_rows)
    return found


def _assign(
    boxes: Tensor,
    gt_boxes: Tensor,
    found: Overlaps,
    floor_iou: float,
    tie_iou: float,
    num_rows: int,
) -> None:
    """Fills `found` of one picture, from blocks of `num_rows` boxes."""
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
    best = boxes.new_empty(boxes.shape[:-1], dtype=torch.int64)
    return boxes.new_empty(boxes.shape[:-1]), best, torch.empty_like(best)
