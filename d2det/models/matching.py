"""Which ground truth each box is to learn: exact max-IoU assignment in bounded memory.

Letters: A boxes (anchors or proposals), G ground truths of one picture.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from d2det.boxes import pairwise_iou

NEGATIVE = -1
"""Assignment of a box that is background."""
IGNORED = -2
"""Assignment of a box that is too good for background and too poor for an object."""

_BYTES_PER_PAIR = 48
"""Peak of `pairwise_iou` and of the comparisons below, in float32 and for one (box, object)."""

_Block = tuple[slice, Tensor, Tensor]


def match(
    boxes: Tensor,
    gt_boxes: Tensor,
    *,
    positive_iou: float,
    negative_iou: float,
    best_iou: float,
    max_bytes: int = 64 << 20,
) -> Tensor:
    """Returns the (A,) int64 ground truth of each box, or NEGATIVE or IGNORED.

    A box takes the ground truth it overlaps most if their IoU is at least `positive_iou`, and is
    background below `negative_iou`. In addition every box tied with the best IoU of a ground truth
    takes that one (the last, if several) when this IoU is at least `best_iou`, so small and odd
    objects are not left without a box. With 0.7 / 0.3 / 0.3 an object whose best anchors overlap it
    by 0.4 gets exactly those.

    The result does not depend on `max_bytes`, the memory for IoU blocks.

    Args:
        boxes: (A, 4) float.
        gt_boxes: (G, 4) float, same frame.
        positive_iou: least IoU of a positive.
        negative_iou: IoU below which a box is background.
        best_iou: least IoU for the boxes that fit a ground truth best.
        max_bytes: memory the IoU blocks may take.
    """
    assignment = torch.full((len(boxes),), NEGATIVE, dtype=torch.int64, device=boxes.device)
    if len(boxes) == 0 or len(gt_boxes) == 0:
        return assignment
    num_rows = max(1, max_bytes // (_BYTES_PER_PAIR * len(gt_boxes)))
    # One block is kept for the second pass; many are computed again, bit for bit the same.
    kept = list(_iou_blocks(boxes, gt_boxes, num_rows)) if num_rows >= len(boxes) else None
    best_of_gt = boxes.new_zeros(len(gt_boxes))
    for rows, near, iou in kept or _iou_blocks(boxes, gt_boxes, num_rows):
        value, index = iou.max(1)
        background = torch.where(value >= negative_iou, IGNORED, NEGATIVE)
        assignment[rows] = torch.where(value >= positive_iou, near[index], background)
        best_of_gt[near] = torch.maximum(best_of_gt[near], iou.amax(0))
    for rows, near, iou in kept or _iou_blocks(boxes, gt_boxes, num_rows):
        best = best_of_gt[near]
        tied = (iou == best) & (best >= best_iou)
        last = torch.where(tied, near, NEGATIVE).amax(1)
        assignment[rows] = torch.where(last >= 0, last, assignment[rows])
    return assignment


def _iou_blocks(boxes: Tensor, gt_boxes: Tensor, num_rows: int) -> Iterator[_Block]:
    """Yields (rows, near, iou) for `num_rows` boxes at a time: iou is (num_rows, len(near)).

    Ground truths away from all boxes of a block are left out: neighbouring anchors are neighbours
    in memory, so of 10 000 objects a block sees a few hundred.
    """
    everything = torch.arange(len(gt_boxes), device=boxes.device)
    for start in range(0, len(boxes), num_rows):
        rows = slice(start, min(start + num_rows, len(boxes)))
        block = boxes[rows]
        near = everything
        if num_rows < len(boxes):
            low, high = block[:, :2].amin(0), block[:, 2:].amax(0)
            touching = (gt_boxes[:, :2] < high) & (gt_boxes[:, 2:] > low)
            near = everything[touching.all(1)]
        if len(near):
            yield rows, near, pairwise_iou(block, gt_boxes[near])
