"""Losses as sums over a rank, and the one collective that makes them means over the whole batch.

Every term keeps its plain sum and the counts its mean is taken over. Counts of all terms and ranks
are added up in one vector; each rank then divides its own sums by the global figures. So however a
batch is cut over unequal workers, the summed gradient is the gradient of the whole batch, and a
rank without objects or pictures takes part with zeros.

Letters: R RoIs, K classes, S cells per side, M mask pixels per side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from d2det.boxes import elementwise_iou

MIN_IOU = 1e-6
"""Keeps -log(IoU) finite where boxes do not touch (released code)."""
POOR_IOU, POOR_IOU_BONUS = 0.1, 0.1
"""IoUs up to 0.1 count 0.1 more, so that one hopeless cell costs at most -log(0.1)."""


@dataclass(frozen=True)
class LossTerm:
    """One loss of one rank, not yet a mean.

    total: scalar, the weighted sum over this rank, part of the graph.
    counts: (2,) float64 (a, b); the mean is total * a / b^2 of the global counts, with a = b = what
        was summed over, or with a = the number of those that matter (see `dense_regression_term`).
    """

    total: Tensor
    counts: Tensor

    def mean(self, global_counts: Tensor) -> Tensor:
        """Returns this rank's share of the global mean, given the (2,) counts of all ranks."""
        a, b = global_counts
        factor: Tensor = a / b.clamp(min=1) ** 2
        return self.total * factor.to(self.total.dtype)


def term(total: Tensor, count: Tensor | int, *, relevant: Tensor | None = None) -> LossTerm:
    """Returns a LossTerm with the mean over `count`, times the share of them that is `relevant`."""
    counts = torch.as_tensor(count, dtype=torch.float64, device=total.device).expand(2)
    if relevant is not None:
        counts = torch.stack((relevant.to(counts), counts[1]))
    return LossTerm(total, counts)


def no_terms(names: Iterable[str], parameters: Iterable[Tensor]) -> dict[str, LossTerm]:
    """Returns terms for a rank that has nothing to learn from: zeros that reach all `parameters`.

    Data-parallel training waits for the gradient of every parameter, even if it is zero.
    """
    touched = [p.flatten()[:0].sum() for p in parameters if p.requires_grad]
    zero = torch.stack(touched).sum()
    return {name: term(zero, 0) for name in names}


def reduce_losses(
    terms: Mapping[str, LossTerm], all_reduce: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Returns every loss as this rank's share of the mean over the global batch.

    The shares of all ranks add up to the losses of the undivided batch, and so do the gradients.
    `all_reduce` sums a tensor over the ranks and is called exactly once, whatever the terms hold.
    """
    counts = all_reduce(torch.stack([loss.counts for loss in terms.values()]))
    return {name: loss.mean(row) for (name, loss), row in zip(terms.items(), counts, strict=True)}


def iou_loss(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """Returns the (...,) loss -log(IoU) of boxes (..., 4) against gt_boxes (..., 4).

    IoU is clamped to MIN_IOU and raised by POOR_IOU_BONUS up to POOR_IOU, as released.
    """
    iou = elementwise_iou(boxes, gt_boxes).clamp(min=MIN_IOU)
    return -torch.where(iou > POOR_IOU, iou, iou + POOR_IOU_BONUS).log()


def dense_regression_term(
    boxes: Tensor,
    gt_boxes: Tensor,
    overlap: Tensor,
    *,
    cell_loss: Literal["per_cell", "released"],
    weight: float,
) -> LossTerm:
    """Returns the IoU loss of the boxes that the cells vote for.

    "per_cell" is the mean over the cells in the overlap (paper section 3.1). "released" is what
    the released code computes, as its weights broadcast: the mean over all cells times the share of
    cells in the overlap.

    Args:
        boxes: (R, S, S, 4) float, the decoded predictions.
        gt_boxes: (R, 4) float, matched ground truths.
        overlap: (R, S, S) bool, cells in the overlap of RoI and ground truth.
        cell_loss: which cells train.
        weight: of this loss.
    """
    losses = iou_loss(boxes, gt_boxes[:, None, None, :])
    if cell_loss == "released":
        return term(weight * losses.sum(), overlap.numel(), relevant=overlap.sum())
    return term(weight * (losses * overlap).sum(), overlap.sum())


def binary_term(logits: Tensor, targets: Tensor, *, weight: float = 1.0) -> LossTerm:
    """Returns the binary cross entropy of logits (...) with targets (...) bool, over all."""
    loss = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="sum")
    return term(weight * loss, logits.numel())


def class_term(logits: Tensor, labels: Tensor, *, weight: float) -> LossTerm:
    """Returns the cross entropy of logits (R, K + 1) with labels (R,) int64, over all RoIs."""
    return term(weight * F.cross_entropy(logits, labels, reduction="sum"), len(labels))


def smooth_l1_term(
    deltas: Tensor, targets: Tensor, *, beta: float, count: int, weight: float = 1.0
) -> LossTerm:
    """Returns the smooth L1 loss of deltas (R, 4) with targets (R, 4), over `count` samples."""
    loss = F.smooth_l1_loss(deltas, targets.to(deltas.dtype), beta=beta, reduction="sum")
    return term(weight * loss, count)


def mask_iou_term(predicted: Tensor, targets: Tensor, *, weight: float) -> LossTerm:
    """Returns the squared error of mask IoUs (R,), over all RoIs though only some train.

    Trained are those whose target lies in (0.1, 1] (released code).
    """
    trained = (targets > 0.1) & (targets <= 1)
    return term(weight * (trained * (predicted - targets) ** 2).sum(), len(targets))
