"""Which ground truth each box is to learn: exact max-IoU assignment in bounded memory.

Letters: N pictures, each with A boxes (anchors or proposals) and G ground truths.
"""

from __future__ import annotations

import torch
from torch import Tensor

from d2det_ops import assign_targets

NEGATIVE = -1
"""Assignment of a box that is background."""
IGNORED = -2
"""Assignment of a box that is too good for background and too poor for an object."""


def match(
    boxes: Tensor,
    gt_boxes: Tensor,
    *,
    positive_iou: float,
    negative_iou: float,
    best_iou: float,
    max_bytes: int = 64 << 20,
) -> Tensor:
    """Returns the int64 ground truth of each box, or NEGATIVE or IGNORED: (A,) or (N, A).

    A box takes the ground truth it overlaps most if their IoU is at least `positive_iou`, and is
    background below `negative_iou`. In addition every box tied with the best IoU of a ground truth
    takes that one (the last, if several) when this IoU is at least `best_iou`, so small and odd
    objects are not left without a box. With 0.7 / 0.3 / 0.3 an object whose best anchors overlap it
    by 0.4 gets exactly those.

    The result does not depend on `max_bytes`, the memory for IoU blocks where nothing is compiled.

    Args:
        boxes: (A, 4) or (N, A, 4) float; those without area are background.
        gt_boxes: (G, 4) or (N, G, 4) float, same frame; those without area belong to no box.
        positive_iou: least IoU of a positive.
        negative_iou: IoU below which a box is background.
        best_iou: least IoU for the boxes that fit a ground truth best.
        max_bytes: memory the IoU blocks may take.
    """
    floor_iou = min(positive_iou, negative_iou, best_iou)
    found = assign_targets(
        boxes, gt_boxes, floor_iou=floor_iou, tie_iou=best_iou, max_bytes=max_bytes
    )
    background = torch.where(found.iou >= negative_iou, IGNORED, NEGATIVE)
    assignment = torch.where(found.iou >= positive_iou, found.best, background)
    return torch.where(found.tied >= 0, found.tied, assignment)
