"""Test-time augmentation: several sizes and mirrored views of a picture, predicted as one.

The released code stops at class scores when it augments; here every stage sees every view, so that
dense regression and masks take part:

1. proposals of all views are pooled and thinned by NMS;
2. class probabilities are averaged over views;
3. in dense local regression every cell of every view votes: a view counts by its votes;
4. mask probabilities and predicted mask quality are averaged.

One plain view gives exactly the plain result. (Own design: the paper gives only the gain.)

Letters: V views, R boxes, D detections, K classes, M mask pixels per side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2det.boxes import clip, flip_horizontal, rescale
from d2det.config import InputConfig
from d2det.inference.preprocess import resize_image, resize_scale, resized_size, to_batch
from d2det.models.box_regression import DeltaRegression
from d2det.models.dense_regression import DensePrediction
from d2det.models.detector import D2Det
from d2det.models.masks import SCORE_WEIGHT
from d2det.models.roi_pooling import ROI_STRIDES, align_rois
from d2det.models.rpn import Proposals, as_rois
from d2det.models.selection import select, soften
from d2det.structures import ImageBatch, RawDetections
from d2det_ops import nms


@dataclass(frozen=True)
class View:
    """One way to look at a picture.

    images: a batch of one.
    ratio: size relative to the reference, the plain view, in whose frame all views meet.
    mirrored: whether left and right are exchanged.
    """

    images: ImageBatch
    ratio: float = 1.0
    mirrored: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the view in pixels."""
        height, width = self.images.sizes[0].tolist()
        return height, width

    def from_reference(self, boxes: Tensor) -> Tensor:
        """Returns boxes (R, 4) of the reference in this view."""
        if self.ratio != 1:
            boxes = rescale(boxes, self.ratio)
        return flip_horizontal(boxes, self.size[1]) if self.mirrored else boxes

    def to_reference(self, boxes: Tensor) -> Tensor:
        """Returns boxes (R, 4) of this view in the reference."""
        if self.mirrored:
            boxes = flip_horizontal(boxes, self.size[1])
        return rescale(boxes, 1 / self.ratio) if self.ratio != 1 else boxes


def make_views(
    image: NDArray[np.uint8], config: InputConfig, *, device: torch.device | str = "cpu"
) -> list[View]:
    """Returns the plain view of a picture, (H, W, 3) uint8 RGB, and those `config` adds to it."""
    height, width = image.shape[:2]
    reference = resize_scale(height, width, config.short_side, config.long_side)
    views = []
    for factor in (1.0, *config.tta_factors):
        sides = round(config.short_side * factor), round(config.long_side * factor)
        ratio = resize_scale(height, width, *sides) / reference
        resized = resize_image(image, resized_size(height, width, *sides))
        for mirrored in (False, True):
            pixels = np.ascontiguousarray(resized[:, ::-1]) if mirrored else resized
            views.append(View(to_batch([pixels], config).to(device), ratio, mirrored))
    return views


@torch.no_grad()
def detect_views(model: D2Det, views: Sequence[View]) -> RawDetections:
    """Returns what all views together show, in the frame of the first, which is the reference."""
    features = [model.features(view.images) for view in views]
    proposals = _pool_proposals(model, views, features)
    looks = [
        _Look(model, view, levels[: len(ROI_STRIDES)])
        for view, levels in zip(views, features, strict=True)
    ]
    config, boxes = model.config.inference, proposals.boxes
    scores = torch.stack([look.classify(boxes) for look in looks]).mean(0)
    is_delta = isinstance(model.regression, DeltaRegression)
    if is_delta:
        boxes = _regress(looks, boxes)
    found = select(boxes, scores, proposals.image_index, num_images=1, config=config)
    if not is_delta:
        found = replace(found, boxes=_regress(looks, found.boxes))
    if config.soft_nms:
        found = soften(found, num_images=1, num_classes=scores.shape[1], config=config)
    masks, mask_scores = None, None
    if model.mask is not None and config.masks:
        seen = [look.masks(found.boxes, found.labels) for look in looks]
        masks = torch.stack([mask for mask, _ in seen]).mean(0)
        iou = torch.stack([iou for _, iou in seen]).mean(0)
        mask_scores = found.scores + SCORE_WEIGHT * iou
    return RawDetections(found.boxes, found.scores, found.labels, views[0].size, masks, mask_scores)


def _pool_proposals(
    model: D2Det, views: Sequence[View], features: Sequence[tuple[Tensor, ...]]
) -> Proposals:
    """The best proposals of all views, (R, 4), in the reference."""
    found = [
        model.propose(levels, view.images) for view, levels in zip(views, features, strict=True)
    ]
    if len(views) == 1:
        return found[0]
    config = model.config.rpn
    boxes = torch.cat(
        [view.to_reference(each.boxes) for view, each in zip(views, found, strict=True)]
    )
    boxes = clip(boxes, *views[0].size)
    scores = torch.cat([each.scores for each in found])
    keep = nms(boxes, scores, config.nms_iou, max_keep=config.test_top_n)
    return Proposals(boxes[keep], scores[keep], torch.zeros_like(keep))


def _regress(looks: Sequence[_Look], boxes: Tensor) -> Tensor:
    """Regressed boxes (R, 4): the mean over views, each counting by its number of votes."""
    moved, votes = zip(*(look.regress(boxes) for look in looks), strict=True)
    counts = torch.stack(votes)
    total = counts.sum(0)
    # Where no cell of any view votes, the box collapses in all views alike.
    weight = torch.where(total > 0, counts / total.clamp(min=1), 1 / len(looks))
    return (torch.stack(moved) * weight[..., None]).sum(0)


@dataclass(frozen=True)
class _Look:
    """The second stage on one view; boxes come and go in the reference.

    levels: P2..P5 of the view, each (1, C, H_l, W_l).
    """

    model: D2Det
    view: View
    levels: tuple[Tensor, ...]

    def classify(self, boxes: Tensor) -> Tensor:
        """(R, K) class probabilities without background."""
        logits: Tensor = self.model.classification(self.levels, self._rois(boxes))
        return logits.softmax(1)[:, :-1]

    def regress(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Regressed boxes (R, 4) and the number of cells (R,) that voted for each."""
        prediction = self.model.regression(align_rois(self.levels, self._rois(boxes)))
        moved = self.model.regression.decode(self.view.from_reference(boxes), prediction)
        votes = boxes.new_ones(len(boxes))
        if isinstance(prediction, DensePrediction) and self.model.config.regression.overlap:
            votes = (prediction.overlap > 0).sum((1, 2)).to(boxes.dtype)
        return self.view.to_reference(moved), votes

    def masks(self, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mask probabilities (D, M, M), not mirrored, and their predicted quality (D,)."""
        assert self.model.mask is not None
        trunk = self.model.regression(align_rois(self.levels, self._rois(boxes))).features
        logits = self.model.mask(trunk, labels)
        iou = self.model.mask.predict_iou(trunk, logits, labels)
        masks: Tensor = logits.sigmoid()
        return masks.flip(-1) if self.view.mirrored else masks, iou

    def _rois(self, boxes: Tensor) -> Tensor:
        return as_rois(self.view.from_reference(boxes), boxes.new_zeros(len(boxes)))
