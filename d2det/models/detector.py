"""D2Det: from a batch of pictures to detections (Cao et al., CVPR 2020).

Letters: N pictures, R boxes of all pictures together, K classes, M = 28 mask pixels per side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from d2det.config import ModelConfig
from d2det.models.box_regression import DeltaRegression
from d2det.models.classification import ClassificationBranch
from d2det.models.dense_regression import DenseRegression
from d2det.models.fpn import SIZE_MULTIPLE, FeaturePyramid
from d2det.models.learning import localisation_names, localisation_terms, rpn_terms
from d2det.models.losses import LossTerm, class_term, no_terms
from d2det.models.masks import SCORE_WEIGHT, MaskBranch
from d2det.models.roi_pooling import ROI_STRIDES, align_rois
from d2det.models.rpn import Proposals, RegionProposalNetwork, as_rois
from d2det.models.sampling import sample_rois
from d2det.models.selection import Candidates, select, soften
from d2det.structures import ImageBatch, RawDetections, TrainingBatch


class D2Det(nn.Module):
    """A two-stage detector whose second stage regresses densely and pools discriminatively."""

    def __init__(
        self,
        *,
        backbone: nn.Module,
        fpn: FeaturePyramid,
        rpn: RegionProposalNetwork,
        classification: ClassificationBranch,
        regression: DenseRegression | DeltaRegression,
        mask: MaskBranch | None,
        config: ModelConfig,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.fpn = fpn
        self.rpn = rpn
        self.classification = classification
        self.regression = regression
        self.mask = mask
        self.config = config

    def features(self, images: ImageBatch) -> tuple[Tensor, ...]:
        """Returns P2..P6, each (N, C, H_l, W_l) in the network's precision, channels last."""
        dtype = next(self.backbone.parameters()).dtype
        pixels = images.pixels.to(dtype=dtype, memory_format=torch.channels_last)
        levels: tuple[Tensor, ...] = self.fpn(self.backbone(pixels))
        return levels

    def propose(self, features: Sequence[Tensor], images: ImageBatch) -> Proposals:
        """Returns the proposals of all pictures, from P2..P6 of `features`."""
        return self.rpn.propose(self.rpn(features), images.sizes)

    @torch.no_grad()
    def detect(self, images: ImageBatch) -> list[RawDetections]:
        """Returns what is in each picture, as if it had come alone.

        Convolutions see a picture's padding, so a picture that is padded further than its own next
        multiple of 32 would get slightly other features. Pictures therefore run in groups of equal
        padded size; give pictures of one size to have them run in one pass.
        """
        results: dict[int, RawDetections] = {}
        for (height, width), members in _group_by_padded_size(images.sizes).items():
            group = ImageBatch(images.pixels[members, :, :height, :width], images.sizes[members])
            features = self.features(group)
            found = self.recognise(features, self.propose(features, group), group.sizes)
            results.update(zip(members, found, strict=True))
        return [results[i] for i in range(len(images))]

    @torch.no_grad()
    def recognise(
        self, features: Sequence[Tensor], proposals: Proposals, sizes: Tensor
    ) -> list[RawDetections]:
        """Returns the second stage's detections in each picture of `sizes` (N, 2).

        features: P2..P6, each (N, C, H_l, W_l).
        """
        features = features[: len(ROI_STRIDES)]
        scores = self.classification(features, proposals.rois).softmax(1)[:, :-1]
        boxes, image_index = proposals.boxes, proposals.image_index
        if isinstance(self.regression, DeltaRegression):
            # Cheap enough for every proposal, so NMS sees regressed boxes, as in Faster R-CNN.
            boxes = self._regress(features, boxes, image_index)
        found = select(
            boxes, scores, image_index, num_images=len(sizes), config=self.config.inference
        )
        if isinstance(self.regression, DenseRegression):
            first, place = _one_of_each(found.proposal_index)
            boxes = self._regress(features, found.boxes[first], found.image_index[first])
            found = replace(found, boxes=boxes[place])
        if self.config.inference.soft_nms:
            found = soften(
                found,
                num_images=len(sizes),
                num_classes=scores.shape[1],
                config=self.config.inference,
            )
        return _split(found, self._masks(features, found), sizes)

    def loss_terms(self, batch: TrainingBatch) -> dict[str, LossTerm]:
        """Returns the losses of this rank's share of a global batch, for `reduce_losses`.

        Their names depend on the configuration alone. Every trainable parameter is reached, be it
        with zeros, also where there is no object or no picture.
        """
        config = self.config
        if len(batch) == 0:
            names = ("rpn_cls", "rpn_box", "cls", *localisation_names(config))
            return no_terms(names, self.parameters())
        features = self.features(batch.images)
        output = self.rpn(features)
        terms = rpn_terms(output, batch, config.rpn)
        samples = sample_rois(
            self.rpn.propose(output, batch.images.sizes),
            batch,
            num_classes=config.num_classes,
            config=config.roi_sampler,
        )
        features = features[: len(ROI_STRIDES)]
        logits = self.classification(features, samples.rois)
        terms["cls"] = class_term(logits, samples.labels, weight=config.classification.loss_weight)
        return terms | localisation_terms(
            self.regression, self.mask, features, samples, batch, config
        )

    def _regress(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Regressed boxes (R, 4) of `boxes` (R, 4) in pictures `image_index` (R,)."""
        pooled = align_rois(features, as_rois(boxes, image_index))
        return self.regression.decode(boxes, self.regression(pooled))

    def _masks(self, features: Sequence[Tensor], found: Candidates) -> tuple[Tensor, Tensor] | None:
        """Probabilities (D, M, M) and scores (D,) of masks in the regressed boxes."""
        if self.mask is None or not self.config.inference.masks:
            return None
        first, place = _one_of_each(found.proposal_index)
        rois = as_rois(found.boxes[first], found.image_index[first])
        trunk = self.regression(align_rois(features, rois)).features[place]
        logits = self.mask(trunk, found.labels)
        iou = self.mask.predict_iou(trunk, logits, found.labels)
        return logits.sigmoid(), found.scores + SCORE_WEIGHT * iou


def _group_by_padded_size(sizes: Tensor) -> dict[tuple[int, int], list[int]]:
    """Positions of pictures of `sizes` (N, 2) by their own padded (height, width)."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    padded = -(-sizes // SIZE_MULTIPLE) * SIZE_MULTIPLE
    for i, (height, width) in enumerate(padded.tolist()):
        groups[height, width].append(i)
    return groups


def _one_of_each(index: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (U,) of one entry of each value in `index` (D,), and the place (D,) of each entry.

    Dense regression has the costliest layers of all; a proposal that may be of several classes
    passes them once.
    """
    values, place = index.unique(return_inverse=True)
    first = torch.empty_like(values)
    return first.scatter_(0, place, torch.arange(len(place), device=place.device)), place


def _split(
    found: Candidates, masks: tuple[Tensor, Tensor] | None, sizes: Tensor
) -> list[RawDetections]:
    """The detections of each picture of `sizes` (N, 2)."""
    counts = found.image_index.bincount(minlength=len(sizes)).tolist()
    boxes, scores, labels = (x.split(counts) for x in (found.boxes, found.scores, found.labels))
    probabilities, mask_scores = ([None] * len(sizes),) * 2
    if masks is not None:
        probabilities, mask_scores = (x.split(counts) for x in masks)
    return [
        RawDetections(
            boxes[i], scores[i], labels[i], (height, width), probabilities[i], mask_scores[i]
        )
        for i, (height, width) in enumerate(sizes.tolist())
    ]
