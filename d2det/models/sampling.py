"""Which of the matched boxes train, drawn by key so that the batch around a picture has no say.

Letters: A boxes of one picture; R sampled RoIs of all pictures together, Q of them positive.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from d2det import rng
from d2det.boxes import jittered
from d2det.config import RegressionConfig, RoiSamplerConfig
from d2det.models.matching import NEGATIVE, match
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


def sample(
    assignment: Tensor, *, count: int, positive_fraction: float, key: int
) -> tuple[Tensor, Tensor]:
    """Returns the positions of the sampled positives and negatives, int64, ascending.

    At most `positive_fraction` of `count` are positives; negatives fill up to `count`. Which ones
    are drawn depends on `key` and on their positions alone.

    Args:
        assignment: (A,) int64 of `match`.
        count: samples wanted in all.
        positive_fraction: largest share of positives.
        key: of the picture and the purpose.
    """
    priority = rng.uniform(len(assignment), key=key, device=assignment.device)
    positives = (assignment >= 0).nonzero().flatten()
    positives = _choose(positives, int(count * positive_fraction), priority)
    negatives = (assignment == NEGATIVE).nonzero().flatten()
    return positives, _choose(negatives, count - len(positives), priority)


@torch.no_grad()
def sample_rois(
    proposals: Proposals, batch: TrainingBatch, *, num_classes: int, config: RoiSamplerConfig
) -> RoiSamples:
    """Returns the proposals and ground truths drawn to train the second stage.

    Ground truths join the proposals, so that even an untrained first stage gives positives.
    """
    counts = proposals.image_index.bincount(minlength=len(batch)).tolist()
    num_gts = 0
    parts = []
    for i, found in enumerate(proposals.boxes.split(counts)):
        target = batch.targets[i]
        boxes = torch.cat((target.boxes, found))
        assignment = match(
            boxes,
            target.boxes,
            positive_iou=config.iou,
            negative_iou=config.iou,
            best_iou=config.iou,
        )
        positive, negative = sample(
            assignment,
            count=config.samples_per_image,
            positive_fraction=config.positive_fraction,
            key=rng.key(batch.image_keys[i], "rois"),
        )
        drawn = torch.cat((positive, negative))
        labels = torch.full_like(drawn, num_classes)
        labels[: len(positive)] = target.labels[assignment[positive]]
        owners = assignment[drawn]
        owners[: len(positive)] += num_gts
        num_gts += len(target)
        parts.append((boxes[drawn], torch.full_like(drawn, i), labels, owners))
    return RoiSamples(*(torch.cat(column) for column in zip(*parts, strict=True)))


@torch.no_grad()
def sample_positives(
    samples: RoiSamples, batch: TrainingBatch, config: RegressionConfig
) -> RoiSamples:
    """Returns the Q positives that train the regression, of each picture a limited number.

    For dense regression they are moved and scaled at random, and learn from worse boxes than the
    matched ones; each keeps its ground truth (released code).
    """
    positives = (samples.owners >= 0).nonzero().flatten()
    counts = samples.image_index[positives].bincount(minlength=len(batch)).tolist()
    device = positives.device
    chosen, noise = [], []
    for rows, key in zip(positives.split(counts), batch.image_keys, strict=True):
        priority = rng.uniform(len(rows), key=rng.key(key, "regression"), device=device)
        everything = torch.arange(len(rows), device=device)
        rows = rows[_choose(everything, config.max_samples_per_image, priority)]
        chosen.append(rows)
        noise.append(rng.uniform(4 * len(rows), key=rng.key(key, "jitter"), device=device))
    rows = torch.cat(chosen)
    boxes, image_index = samples.boxes[rows], samples.image_index[rows]
    if config.kind == "dense":
        height, width = batch.images.sizes.to(boxes)[image_index].unbind(1)
        amount = (2 * torch.cat(noise).to(boxes.dtype) - 1).view(-1, 4) * config.jitter
        boxes = jittered(boxes, amount, height=height, width=width)
    return RoiSamples(boxes, image_index, samples.labels[rows], samples.owners[rows])


def _choose(candidates: Tensor, count: int, priority: Tensor) -> Tensor:
    """The `count` candidates (M,) with the least priority[candidate] (all, if fewer), ascending."""
    if len(candidates) <= count:
        return candidates
    kept = priority[candidates].topk(count, largest=False, sorted=False).indices
    return candidates[kept].sort().values
