"""The losses of the two stages for a batch: sampled boxes, their targets, what was predicted.

Letters: T anchors, G ground truths of all pictures together, Q positive RoIs of all pictures
together, M = 28 mask pixels and k = 7 cells per side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from d2det.boxes import encode_deltas
from d2det.config import MaskConfig, ModelConfig, RegressionConfig, RpnConfig
from d2det.models.box_regression import DELTA_STD, DeltaRegression
from d2det.models.dense_regression import DensePrediction, DenseRegression, cell_boxes
from d2det.models.losses import (
    LossTerm,
    binary_term,
    dense_regression_term,
    mask_iou_term,
    no_terms,
    smooth_l1_term,
)
from d2det.models.mask_targets import joined, mask_iou_targets, mask_targets, overlap_cells_of_masks
from d2det.models.masks import MaskBranch
from d2det.models.matching import IGNORED, match
from d2det.models.roi_pooling import align_rois
from d2det.models.rpn import RpnOutput
from d2det.models.sampling import RoiSamples, image_keys, sample, sample_positives
from d2det.models.targets import inside_picture, overlap_cells
from d2det.structures import CroppedMasks, TrainingBatch

RPN_BEST_IOU = 0.3
"""IoU from which the anchors that fit a ground truth best are positive (released code)."""
RPN_BETA = 1 / 9
"""Error at which the smooth L1 loss of anchors turns linear (released code)."""
DELTA_BETA = 1.0
"""The same for the usual box regression of the second stage."""


def rpn_terms(output: RpnOutput, batch: TrainingBatch, config: RpnConfig) -> dict[str, LossTerm]:
    """Returns the losses of the anchors sampled in each picture: "rpn_cls" and "rpn_box"."""
    anchors, gt_boxes = output.anchors, batch.gt_boxes
    inside = inside_picture(anchors, batch.images.sizes)
    assignment = match(
        torch.where(inside[..., None], anchors, 0),
        gt_boxes,
        positive_iou=config.positive_iou,
        negative_iou=config.negative_iou,
        best_iou=RPN_BEST_IOU,
    )
    positives, negatives = sample(
        torch.where(inside, assignment, IGNORED),
        count=config.samples_per_image,
        positive_fraction=config.positive_fraction,
        keys=image_keys(batch, "anchors", anchors.device),
        # Positions among the anchors inside do not depend on how far the batch was padded.
        numbering=inside.cumsum(1) - 1,
    )
    logits = torch.cat((positives.of(output.logits), negatives.of(output.logits)))
    is_object = torch.arange(len(logits), device=logits.device) < len(positives)
    owner = gt_boxes[positives.image_index, positives.of(assignment)]
    targets = encode_deltas(owner, anchors[positives.position])
    predicted = positives.of(output.deltas)
    return {
        "rpn_cls": binary_term(logits, is_object),
        "rpn_box": smooth_l1_term(predicted, targets, beta=RPN_BETA, count=len(logits)),
    }


def localisation_terms(
    regression: DenseRegression | DeltaRegression,
    mask: MaskBranch | None,
    features: Sequence[Tensor],
    samples: RoiSamples,
    batch: TrainingBatch,
    config: ModelConfig,
) -> dict[str, LossTerm]:
    """Returns the losses of the regression and instance branches on the positives of `samples`.

    features: P2..P5, each (N, C, H_l, W_l).
    """
    positives = sample_positives(samples, batch, config.regression)
    gt_boxes = torch.cat([target.boxes for target in batch.targets])[positives.owners]
    if isinstance(regression, DeltaRegression):
        return delta_terms(
            regression(align_rois(features, positives.rois)),
            positives.boxes,
            gt_boxes,
            num_samples=len(samples),
            weight=config.regression.loss_weight,
        )
    if len(positives) == 0:  # convolutions and norms of no RoI are better not tried
        parameters = [*regression.parameters(), *(mask.parameters() if mask else ())]
        return no_terms(localisation_names(config), parameters)
    pooled = align_rois(features, positives.rois)
    prediction: DensePrediction = regression(pooled)
    if mask is None or config.mask is None:
        cells = overlap_cells(positives.boxes, gt_boxes)
        return dense_terms(prediction, positives.boxes, gt_boxes, cells, config.regression)
    masks = _masks_of(batch)
    targets = mask_targets(
        masks, positives.owners, positives.boxes, rounding=config.mask.target_rounding
    )
    cells = overlap_cells_of_masks(targets)
    terms = dense_terms(prediction, positives.boxes, gt_boxes, cells, config.regression)
    return terms | mask_terms(mask, prediction.features, positives, targets, masks, config.mask)


def localisation_names(config: ModelConfig) -> tuple[str, ...]:
    """Returns the names of the losses that `localisation_terms` gives."""
    if config.regression.kind == "delta":
        return ("box_reg",)
    overlap = ("overlap",) if config.regression.overlap else ()
    mask = ("mask", "mask_iou") if config.mask else ()
    return ("dense_reg", *overlap, *mask)


def delta_terms(
    deltas: Tensor, boxes: Tensor, gt_boxes: Tensor, *, num_samples: int, weight: float
) -> dict[str, LossTerm]:
    """Returns the loss of the usual box regression, "box_reg", over all sampled RoIs.

    deltas: (Q, 4) float, predicted in units of DELTA_STD.
    boxes, gt_boxes: (Q, 4) float, the RoIs and their ground truths.
    """
    targets = encode_deltas(gt_boxes, boxes) / gt_boxes.new_tensor(DELTA_STD)
    loss = smooth_l1_term(deltas, targets, beta=DELTA_BETA, count=num_samples, weight=weight)
    return {"box_reg": loss}


def dense_terms(
    prediction: DensePrediction,
    boxes: Tensor,
    gt_boxes: Tensor,
    object_cells: Tensor,
    config: RegressionConfig,
) -> dict[str, LossTerm]:
    """Returns the losses of dense local regression: "dense_reg" and, if predicted, "overlap".

    boxes, gt_boxes: (Q, 4) float, the RoIs and their ground truths.
    object_cells: (Q, k, k) bool, cells on the object.
    """
    if not config.overlap:
        object_cells = torch.ones_like(object_cells)
    terms = {
        "dense_reg": dense_regression_term(
            cell_boxes(boxes, prediction.offsets),
            gt_boxes,
            object_cells,
            cell_loss=config.cell_loss,
            weight=config.loss_weight,
        )
    }
    if config.overlap:
        weight = config.overlap_loss_weight
        terms["overlap"] = binary_term(prediction.overlap, object_cells, weight=weight)
    return terms


def mask_terms(
    branch: MaskBranch,
    features: Tensor,
    positives: RoiSamples,
    targets: Tensor,
    masks: CroppedMasks,
    config: MaskConfig,
) -> dict[str, LossTerm]:
    """Returns the losses of the instance branch, "mask" and "mask_iou".

    features: (Q, D, k, k) of the regression branch.  targets: (Q, M, M) bool.
    """
    logits = branch(features, positives.labels)
    ious = branch.predict_iou(features, logits, positives.labels)
    iou_targets = mask_iou_targets(logits, targets, masks, positives.owners, positives.boxes)
    return {
        "mask": binary_term(logits, targets, weight=config.loss_weight),
        "mask_iou": mask_iou_term(ious, iou_targets, weight=config.scoring_loss_weight),
    }


def _masks_of(batch: TrainingBatch) -> CroppedMasks:
    """The masks of all pictures."""
    masks = [target.masks for target in batch.targets if target.masks is not None]
    if len(masks) < len(batch):
        raise ValueError(
            f"{len(batch) - len(masks)} of {len(batch)} pictures have no masks, which a model "
            "with an instance branch learns from"
        )
    return joined(masks)
