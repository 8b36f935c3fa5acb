"""The network against traces of the released code, stage by stage and end to end.

A stage is fed the stored input of that stage, because rounding of RoIs, top-k and NMS amplify the
last bit. Relative errors are taken against the root mean square of the stage's output.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from d2det.boxes import clip
from d2det.checkpoints.official import convert
from d2det.inference.predictor import in_original
from d2det.inference.preprocess import resize_image, resized_size, to_batch
from d2det.models.build import build_detector
from d2det.models.detector import D2Det
from d2det.models.masks import SCORE_WEIGHT
from d2det.models.prepare import prepare_for_inference
from d2det.models.roi_pooling import ROI_STRIDES, align_rois, roi_levels
from d2det.models.rpn import Proposals, RpnOutput, as_rois
from d2det.models.selection import Candidates, soften
from d2det.presets import get_preset
from d2det.structures import RawDetections
from d2det_ops import deform_roi_pool, masks_to_rle
from tests.oracle import trace as oracle
from tests.oracle.trace import Trace

STAGE_TOLERANCE = 1e-4
TRACES = {
    "r50-generated": (
        oracle.generated,
        ("d2det_r50", "r50_detection", "oracle_r50det_generated"),
    ),
    "r101-instance-generated": (
        oracle.generated,
        ("d2det_r101_instance", "r101_instance", "oracle_r101inst_generated"),
    ),
    "r50-photo": (oracle.photo, ("d2det_r50", "r50_detection", "oracle_r50det")),
}


@dataclass
class Run:
    """Our network on the picture of a trace, with what its stages gave on the way."""

    trace: Trace
    model: D2Det
    pixels: Tensor
    trunk: tuple[Tensor, ...]
    pyramid: tuple[Tensor, ...]
    rpn: RpnOutput
    proposals: Proposals
    logits: Tensor
    found: RawDetections

    @property
    def levels(self) -> tuple[Tensor, ...]:
        return self.pyramid[: len(ROI_STRIDES)]


@pytest.fixture(scope="module", params=TRACES.values(), ids=TRACES.keys())
def run(request) -> Run:
    read, names = request.param
    trace = read(*names)
    preset = get_preset(trace.preset)
    model = build_detector(preset.model)
    model.load_state_dict(convert(oracle.official_state(trace.recipe), preset, "recipe"))
    prepare_for_inference(model)
    seen = {}
    for name in ("backbone", "fpn", "rpn", "classification"):
        getattr(model, name).register_forward_hook(
            lambda _, __, output, name=name: seen.setdefault(name, output)
        )
    propose = model.propose
    model.propose = lambda *args: seen.setdefault("proposals", propose(*args))
    size = resized_size(*trace.picture.shape[:2], 400, 667)
    batch = to_batch([resize_image(trace.picture, size)], preset.input)
    with torch.no_grad():
        (found,) = model.detect(batch)
    return Run(
        trace=trace,
        model=model,
        pixels=batch.pixels,
        trunk=seen["backbone"],
        pyramid=seen["fpn"],
        rpn=seen["rpn"],
        proposals=seen["proposals"],
        logits=seen["classification"],
        found=found,
    )


def relative_error(ours: Tensor, theirs: Tensor, rms: float | None = None) -> float:
    scale = theirs.double().square().mean().sqrt() if rms is None else rms
    return float((ours.double() - theirs.double()).abs().max() / scale)


def assert_sampled(ours: Tensor, trace: Trace, name: str) -> None:
    """Compares the sampled entries and the statistics of a large tensor."""
    stats = trace[f"{name}_stats"]
    if f"{name}_pos" in trace:
        values = ours.contiguous().flatten()[trace[f"{name}_pos"].long()]
        assert relative_error(values, trace[f"{name}_val"], float(stats[5])) <= STAGE_TOLERANCE
    x = ours.double()
    found = torch.stack((x.mean(), x.std(), x.abs().mean(), x.min(), x.max()))
    assert relative_error(found, stats[:5], float(stats[5])) <= STAGE_TOLERANCE


Found = tuple[Tensor, Tensor, Tensor]


def match(ours: Found, theirs: Found) -> Tensor:
    """Returns for each of their boxes the position of the nearest of ours, never one twice.

    Nearest in position (pixels), label (which must agree) and score (which tells equal boxes
    apart). Both are (boxes, scores, labels).
    """
    distance = (ours[0][None] - theirs[0][:, None]).abs().amax(-1)
    distance += 100 * (ours[1][None] - theirs[1][:, None]).abs()
    distance += 1e6 * (ours[2][None] != theirs[2][:, None])
    index = distance.argmin(1)
    assert len(ours[0]) == len(theirs[0]) == len(index.unique())
    assert torch.equal(ours[2][index], theirs[2])
    return index


def match_proposals(run: Run) -> Tensor:
    """Returns the positions of our proposals in the order of theirs."""
    boxes, scores = run.trace.boxes("proposals")
    labels = torch.zeros(len(boxes))
    ours = (run.proposals.boxes, run.proposals.scores, torch.zeros(len(run.proposals)))
    return match(ours, (boxes, scores, labels))


def final(run: Run) -> Found:
    """Returns boxes, scores and labels of their final detections in the resized picture."""
    boxes, scores = run.trace.boxes("final_boxes_input")
    return boxes, scores, run.trace["final_labels_input"].long()


def test_input_is_bit_identical(run):
    assert zlib.crc32(run.pixels.numpy().tobytes()) == run.trace.facts["input_crc32"]


def test_trunk_and_pyramid_agree(run):
    for i, stage in enumerate(run.trunk):
        assert_sampled(stage, run.trace, f"c{i + 2}")
    for i, level in enumerate(run.pyramid):
        assert_sampled(level, run.trace, f"p{i + 2}")


def test_region_proposal_network_agrees(run):
    logits = run.rpn.logits.split(run.rpn.level_sizes, 1)
    deltas = run.rpn.deltas.split(run.rpn.level_sizes, 1)
    for i, level in enumerate(run.pyramid):
        height, width = level.shape[-2:]
        maps = logits[i].view(1, height, width, 3).permute(0, 3, 1, 2)
        assert_sampled(maps, run.trace, f"rpn_cls_p{i + 2}")
        maps = deltas[i].reshape(1, height, width, 12).permute(0, 3, 1, 2)
        assert_sampled(maps, run.trace, f"rpn_reg_p{i + 2}")


def test_proposals_are_the_same_set(run):
    theirs, scores = run.trace.boxes("proposals")
    index = match_proposals(run)
    assert (run.proposals.boxes[index] - theirs).abs().max() <= 0.02
    assert (run.proposals.scores[index] - scores).abs().max() <= 1e-5


def test_levels_of_proposals_agree(run):
    boxes, _ = run.trace.boxes("proposals")
    assert torch.equal(roi_levels(boxes), run.trace["proposal_levels"].long())


def test_discriminative_pooling_agrees_on_stored_proposals(run):
    trace, pooling = run.trace, run.model.classification.pooling
    rows = trace["drp_rows"].long()
    boxes, _ = trace.boxes("proposals")
    levels = roi_levels(boxes[rows])
    order = levels.argsort(stable=True)
    rows, levels = rows[order], levels[order]
    rois = as_rois(boxes[rows], torch.zeros(len(rows)))
    samples = run.model.config.roi_pooling.samples_per_bin
    coarse = deform_roi_pool(
        run.levels, rois, levels, strides=ROI_STRIDES, output_size=3, samples=samples
    )
    assert relative_error(coarse[:, :8], trace["drp_3x3_ch0_7"][order]) <= STAGE_TOLERANCE
    counts = levels.bincount(minlength=4).tolist()
    offsets = pooling.predict_offsets(run.levels, rois, levels, counts)
    assert relative_error(offsets, trace["drp_offsets"][order]) <= STAGE_TOLERANCE
    pooled = pooling(run.levels, rois)
    assert relative_error(pooled[:, :8], trace["drp_feat_ch0_7"][order]) <= STAGE_TOLERANCE
    logits = run.model.classification.classify(pooled)
    theirs = trace["cls_logits_rows"][order].roll(-1, 1)  # their background column is the first
    assert relative_error(logits, theirs) <= STAGE_TOLERANCE


def test_class_probabilities_of_all_proposals_agree(run):
    # Deformable pooling jumps where a RoI rounds and where a sample leaves the map. Of a million
    # samples a few lie within float noise of the edge, and which ones depends on the number of
    # threads: measured, one row of 775 differs by 0.02. Every other row must agree.
    probabilities = run.logits.softmax(1)[match_proposals(run)]
    best = (probabilities[:, :-1].amax(1) - run.trace["cls_prob_max_fg"]).abs()
    background = (probabilities[:, -1] - run.trace["cls_prob_bg"]).abs()
    odd = (best > STAGE_TOLERANCE) | (background > STAGE_TOLERANCE)
    assert odd.sum() <= 2
    assert torch.maximum(best, background).max() < 0.1


def test_dense_regression_agrees_on_stored_boxes(run):
    trace, head, count = run.trace, run.model.regression, 16
    boxes, _ = trace.boxes("det1_boxes")
    assert torch.equal(roi_levels(boxes), trace["reg_roi_levels"].long())
    boxes = boxes[:count]
    pooled = align_rois(run.levels, as_rois(boxes, torch.zeros(count)))
    if "reg_feat_ch0_3_first8" in trace:
        assert relative_error(pooled[:8, :4], trace["reg_feat_ch0_3_first8"]) <= STAGE_TOLERANCE
    rms = pooled.square().mean((1, 2, 3)).sqrt()
    assert relative_error(rms, trace["reg_feat_row_rms"][:count]) <= STAGE_TOLERANCE
    prediction = head(pooled)
    features = prediction.features[:4, :8]
    assert relative_error(features, trace["head_feat_ch0_7_first4"]) <= STAGE_TOLERANCE
    assert relative_error(prediction.offsets, trace["dlr_offsets_first16"]) <= STAGE_TOLERANCE
    overlap = trace["dlr_overlap_logits"][:count]
    assert relative_error(prediction.overlap, overlap) <= STAGE_TOLERANCE
    moved, _ = trace.boxes("det2_boxes")
    assert (head.decode(boxes, prediction) - moved[:count]).abs().max() <= 0.02


def test_soft_nms_agrees_on_stored_boxes(run):
    boxes, scores = run.trace.boxes("det2_boxes")
    labels = run.trace["det1_labels"].long()
    proposals = torch.arange(len(boxes))
    found = Candidates(boxes, scores, labels, torch.zeros_like(proposals), proposals)
    if run.model.config.inference.soft_nms:
        found = soften(found, num_images=1, num_classes=80, config=run.model.config.inference)
    theirs = final(run)
    index = match((found.boxes, found.scores, found.labels), theirs)
    assert torch.equal(found.boxes[index], theirs[0])
    assert (found.scores[index] - theirs[1]).abs().max() <= 1e-6


def test_masks_agree_on_stored_boxes(run):
    if run.model.mask is None:
        assert "mask_scores" not in run.trace
        return
    trace, mask, count = run.trace, run.model.mask, 12
    boxes, scores = trace.boxes("det2_boxes")
    labels = trace["det1_labels"].long()[:count]
    pooled = align_rois(run.levels, as_rois(boxes[:count], torch.zeros(count)))
    features = run.model.regression(pooled).features
    logits = mask(features, labels)
    assert relative_error(logits, trace["inst_logits_first12"]) <= STAGE_TOLERANCE
    mean = logits.sigmoid().mean((1, 2))
    assert (mean - trace["inst_prob_mean"][:count]).abs().max() <= STAGE_TOLERANCE
    every = mask(features[:1].expand(80, -1, -1, -1), torch.arange(80))[:, 14, 14]
    theirs = trace["inst_all_classes_row0_center"][1:]  # their channel 0 is the background's
    assert relative_error(every, theirs) <= STAGE_TOLERANCE
    iou = mask.predict_iou(features, logits, labels)
    assert relative_error(iou, trace["mask_iou_pred"][:count]) <= STAGE_TOLERANCE
    total = scores[:count] + SCORE_WEIGHT * iou
    assert (total - trace["mask_scores"][:count]).abs().max() <= STAGE_TOLERANCE


def test_end_to_end_gives_the_same_detections(run):
    theirs = final(run)
    assert len(run.found) == 100
    index = match((run.found.boxes, run.found.scores, run.found.labels), theirs)
    assert (run.found.boxes[index] - theirs[0]).abs().max() <= 0.02
    assert (run.found.scores[index] - theirs[1]).abs().max() <= 1e-4


def test_detections_in_the_original_frame_are_the_official_ones(run):
    height, width = run.trace.picture.shape[:2]
    found = in_original(run.found, size=(height, width), scale=1.25)
    boxes, scores = run.trace.boxes("final_boxes_orig")
    labels = run.trace["final_labels_orig"].long()
    index = match((found.boxes, found.scores, found.labels), (boxes, scores, labels))
    assert (found.boxes[index] - clip(boxes, height, width)).abs().max() <= 0.02
    assert (found.scores[index] - scores).abs().max() <= 1e-4


@pytest.mark.parametrize(("frame", "scale"), [("input", 1.0), ("orig", 1.25)])
def test_end_to_end_gives_the_same_masks(run, frame, scale):
    if run.found.masks is None:
        assert run.model.mask is None
        return
    index = match((run.found.boxes, run.found.scores, run.found.labels), final(run))
    scores = run.found.mask_scores[index]
    assert (scores - run.trace[f"final_mask_scores_{frame}"]).abs().max() <= 1e-3
    height, width = run.found.size if frame == "input" else run.trace.picture.shape[:2]
    inclusive = run.found.boxes[index] - torch.tensor([0.0, 0.0, 1.0, 1.0])
    rles = masks_to_rle(
        run.found.masks[index],
        inclusive / scale + torch.tensor([0.0, 0.0, 1.0, 1.0]),
        height=height,
        width=width,
        convention="released",
    )
    areas = coco_mask.area(list(rles)).astype(np.int64)
    theirs = run.trace.arrays[f"final_mask_area_{frame}"]
    assert (np.abs(areas - theirs) <= np.maximum(0.005 * theirs, 2)).all()
