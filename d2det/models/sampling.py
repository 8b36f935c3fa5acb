"""Which of the matched boxes train, drawn by key so that the batch around a picture has no say.

Letters: N pictures, each with A boxes; R sampled RoIs of all pictures together, Q of them positive.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from d2det import rng
from d2det.boxes import jittered
from d2det.config import RegressionConfig, RoiSamplerConfig
from d2det.models.matching import IGNORED, NEGATIVE, match
from d2det.models.rpn import Proposals, as_rois
from d2det.structures import TrainingBatch


@dataclass(frozen=True)
class RoiSamples:
    """Boxes drawn to train the second stage, picture after picture.

    boxes: (R, 4) float32, in pixels of the resized input.
    image_index: (R,) int64, ascending.
    labels: (R,) int64, 0..K-1, or K where there is only background.
    owners: (R,) int64, the matched ground truth counted over all pictures; negative: background.
    """

    boxes: Tensor
    image_index: Tensor
    labels: Tensor
    owners: Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def rois(self) -> Tensor:
        """(R, 5) float32 rows (image index, x1, y1, x2, y2), as the pooling ops take them."""
        return as_rois(self.boxes, self.image_index)


@dataclass(frozen=True)
class Drawn:
    """Boxes chosen among the A of each of N pictures, picture after picture, positions ascending.

    image_index, position: (M,) int64.
    """

    image_index: Tensor
    position: Tensor

    def __len__(self) -> int:
        return self.position.shape[0]

    def of(self, values: Tensor) -> Tensor:
        """Returns the entries (M, ...) of the chosen in `values` (N, A, ...)."""
        return values[self.image_index, self.position]


def image_keys(batch: TrainingBatch, purpose: str, device: torch.device) -> Tensor:
    """Returns the (N, 1) int64 keys of the pictures for `purpose`."""
    keys = [[rng.key(key, purpose)] for key in batch.image_keys]
    return torch.tensor(keys).to(device)


def sample(
    assignment: Tensor,
    *,
    count: int,
    positive_fraction: float,
    keys: Tensor,
    numbering: Tensor | None = None,
) -> tuple[Drawn, Drawn]:
    """Returns the sampled positives and negatives of each picture.

    Of the `count` of a picture at most `positive_fraction` are positives; negatives fill up. Which
    ones are drawn depends on the picture's key and on its own boxes alone.

    Args:
        assignment: (N, A) int64 of `match`.
        count: samples wanted of a picture.
        positive_fraction: largest share of positives.
        keys: (N, 1) int64, of the picture and the purpose.
        numbering: (N, A) int64, what a box counts as in the draw, if not its position.
    """
    if numbering is None:
        numbering = torch.arange(assignment.shape[1], device=assignment.device)
    priority = rng.uniform(numbering, keys)
    positives, is_positive = _first(priority, assignment >= 0, int(count * positive_fraction))
    negatives, is_negative = _first(priority, assignment == NEGATIVE, count)
    room = count - is_positive.sum(1, keepdim=True)
    is_negative &= torch.arange(is_negative.shape[1], device=room.device) < room
    return _ascending(positives, is_positive), _ascending(negatives, is_negative)


@torch.no_grad()
def sample_rois(
    proposals: Proposals, batch: TrainingBatch, *, num_classes: int, config: RoiSamplerConfig
) -> RoiSamples:
    """Returns the proposals and ground truths drawn to train the second stage.

    Ground truths join the proposals, so that even an untrained first stage gives positives.
    """
    gt_boxes = batch.gt_boxes
    boxes, counts = _ground_truths_first(proposals, batch)
    assignment = match(
        boxes, gt_boxes, positive_iou=config.iou, negative_iou=config.iou, best_iou=config.iou
    )
    exists = torch.arange(boxes.shape[1], device=counts.device) < counts[:, None]
    assignment = torch.where(exists, assignment, IGNORED)
    positives, negatives = sample(
        assignment,
        count=config.samples_per_image,
        positive_fraction=config.positive_fraction,
        keys=image_keys(batch, "rois", boxes.device),
    )
    image_index = torch.cat((positives.image_index, negatives.image_index))
    # Of each picture the positives, then the negatives.
    order = image_index.argsort(stable=True)
    image_index = image_index[order]
    drawn = Drawn(image_index, torch.cat((positives.position, negatives.position))[order])
    owners = drawn.of(assignment)
    first_gt = _offsets(_num_gts(batch)).to(boxes.device)
    owners = torch.where(owners >= 0, owners + first_gt[image_index], owners)
    # Where nothing owns a box, -1 picks the last label.
    background = owners.new_tensor([num_classes])
    labels = torch.cat((*(target.labels for target in batch.targets), background))[owners]
    return RoiSamples(drawn.of(boxes), image_index, labels, owners)


@torch.no_grad()
def sample_positives(
    samples: RoiSamples, batch: TrainingBatch, config: RegressionConfig
) -> RoiSamples:
    """Returns the Q positives that train the regression, of each picture a limited number.

    For dense regression they are moved and scaled at random, and learn from worse boxes than the
    matched ones; each keeps its ground truth (released code).
    """
    positives = (samples.owners >= 0).nonzero().flatten()
    device = positives.device
    counts = samples.image_index[positives].bincount(minlength=len(batch))
    place = torch.arange(int(counts.max()), device=device)
    priority = rng.uniform(place, image_keys(batch, "regression", device))
    chosen = _ascending(*_first(priority, place < counts[:, None], config.max_samples_per_image))
    rows = positives[_offsets(counts)[chosen.image_index] + chosen.position]
    boxes, image_index = samples.boxes[rows], samples.image_index[rows]
    if config.kind == "dense":
        height, width = batch.images.sizes.to(boxes)[image_index].unbind(1)
        kept = counts.clamp(max=config.max_samples_per_image)
        place = torch.arange(len(rows), device=device) - _offsets(kept)[image_index]
        side = torch.arange(4, device=device)
        keys = image_keys(batch, "jitter", device)[image_index]
        noise = rng.uniform(4 * place[:, None] + side, keys)
        amount = (2 * noise.to(boxes.dtype) - 1) * config.jitter
        boxes = jittered(boxes, amount, height=height, width=width)
    return RoiSamples(boxes, image_index, samples.labels[rows], samples.owners[rows])


def _ground_truths_first(proposals: Proposals, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
    """Of each picture ground truths, proposals and zeros (N, A, 4), and how many are boxes (N,)."""
    device = proposals.boxes.device
    of_targets = torch.arange(len(batch)).repeat_interleave(_num_gts(batch)).to(device)
    image_index = torch.cat((of_targets, proposals.image_index))
    boxes = torch.cat((*(target.boxes for target in batch.targets), proposals.boxes))
    order = image_index.argsort(stable=True)
    image_index, boxes = image_index[order], boxes[order]
    counts = image_index.bincount(minlength=len(batch))
    position = torch.arange(len(boxes), device=device) - _offsets(counts)[image_index]
    padded = boxes.new_zeros(len(batch), int(counts.max()), 4)
    padded[image_index, position] = boxes
    return padded, counts


def _first(priority: Tensor, candidates: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Positions (N, M) of the `count` candidates (N, A) bool of least priority (N, A), least first.

    And (N, M) bool: whether there is one; there may be fewer.
    """
    ranked = torch.where(candidates, priority, 1.0)  # priorities are less
    least = ranked.topk(min(count, ranked.shape[1]), dim=1, largest=False)
    return least.indices, least.values < 1


def _ascending(positions: Tensor, chosen: Tensor) -> Drawn:
    """The `chosen` (N, M) bool of `positions` (N, M)."""
    behind_all = torch.iinfo(torch.int64).max
    positions = torch.where(chosen, positions, behind_all).sort(1).values
    image_index, column = (positions < behind_all).nonzero(as_tuple=True)
    return Drawn(image_index, positions[image_index, column])


def _num_gts(batch: TrainingBatch) -> Tensor:
    """(N,) int64 on the CPU."""
    return torch.tensor([len(target) for target in batch.targets])


def _offsets(counts: Tensor) -> Tensor:
    """(N,) int64: where the rows of each picture start if it has `counts` (N,) of them."""
    return counts.cumsum(0) - counts
