"""The rows of the paper's tables: official configurations, variants and ablations.

What is not written here has the default of `d2det.config`, which is R50 detection. Training follows
the released schedule: 24 epochs of 16 pictures a step, learning rate 0.02, a tenth of it after 20
and 23 epochs.
"""

from __future__ import annotations

from d2det.config import (
    BackboneConfig,
    InferenceConfig,
    InputConfig,
    MaskConfig,
    ModelConfig,
    Preset,
    RegressionConfig,
    RoiPoolingConfig,
    RoiSamplerConfig,
    RpnConfig,
    TrainConfig,
)
from d2det.presets import categories
from d2det.structures import Category


def _names(table: tuple[Category, ...]) -> tuple[str, ...]:
    return tuple(category.name for category in table)


_COCO = _names(categories.COCO)
_ISAID = _names(categories.ISAID)
_UAVDT = _names(categories.UAVDT)

_R101 = BackboneConfig(kind="resnet101")
_R101_DCN = BackboneConfig(kind="resnet101", deformable=True)
# The released R101 configurations sample every bin once, R50 four times.
_ONE_SAMPLE = RoiPoolingConfig(samples_per_bin=1)
# Bins of 14 x 14 with one sample, averaged two by two: the usual 7 x 7 RoIAlign with four samples.
_ROI_ALIGN = RoiPoolingConfig(deformable=False, adaptive_weighting=False, samples_per_bin=1)
_USUAL_REGRESSION = RegressionConfig(kind="delta", loss_weight=1.0)
_ABLATION = "figure not in our sources (Table 2, COCO minival)"

R50 = Preset(
    name="d2det_r50",
    summary="Detection on COCO, ResNet-50",
    paper="box AP 43.7 val, 43.9 test-dev (released code); 42.7 minival (paper, Table 2)",
    model=ModelConfig(),
    classes=_COCO,
)

R101 = Preset(
    name="d2det_r101",
    summary="Detection on COCO, ResNet-101",
    paper="box AP 44.9 val, 45.4 test-dev",
    model=ModelConfig(backbone=_R101, roi_pooling=_ONE_SAMPLE),
    classes=_COCO,
)

R101_DCN = Preset(
    name="d2det_r101_dcn",
    summary="Detection on COCO, ResNet-101 with deformable convolutions",
    paper="box AP 46.9 val, 47.5 test-dev",
    model=ModelConfig(backbone=_R101_DCN, roi_pooling=_ONE_SAMPLE),
    classes=_COCO,
)

R101_DCN_MULTISCALE = Preset(
    name="d2det_r101_dcn_multiscale",
    summary="D2Det*: as d2det_r101_dcn, trained at many scales; predict with --tta",
    paper="box AP 50.1 test-dev (the scales are not published; these are ours)",
    model=R101_DCN.model,
    input=InputConfig(short_side=800, long_side=1600, tta_factors=(0.6, 0.8, 1.2)),
    train=TrainConfig(short_sides=(480, 1024)),
    classes=_COCO,
)

R101_INSTANCE = Preset(
    name="d2det_r101_instance",
    summary="Instance segmentation on COCO, ResNet-101",
    paper="mask AP 39.8 val, 40.2 test-dev",
    model=ModelConfig(
        backbone=_R101,
        roi_pooling=_ONE_SAMPLE,
        rpn=RpnConfig(test_top_n=700),
        mask=MaskConfig(),
        inference=InferenceConfig(
            score_threshold=0.05, nms_iou=0.3, max_regressed=100, soft_nms=False
        ),
    ),
    classes=_COCO,
)

R101_UAVDT = Preset(
    name="d2det_r101_uavdt",
    summary="Vehicles seen from drones (UAVDT, one merged class), ResNet-101; VOC AP at IoU 0.7",
    paper="figure not in our sources (VOC AP at IoU 0.7)",
    model=ModelConfig(num_classes=len(_UAVDT), backbone=_R101, roi_pooling=_ONE_SAMPLE),
    classes=_UAVDT,
)

R101_ISAID = Preset(
    name="d2det_r101_isaid",
    summary="Instance segmentation of satellite pictures (iSAID, 800 px patches, overlap 200)",
    paper="figure not in our sources (mask AP)",
    model=R101_INSTANCE.model.model_copy(
        update={
            "num_classes": len(_ISAID),
            # Patches hold hundreds of objects; both settings are the author's advice.
            "roi_sampler": RoiSamplerConfig(samples_per_image=1024, positive_fraction=0.5),
            "inference": InferenceConfig(
                score_threshold=0.05,
                nms_iou=0.3,
                max_regressed=500,
                soft_nms=False,
                max_detections=500,
            ),
        }
    ),
    # The author's test scales: shorter sides of 400, 600, 1000 and 1200 besides 800.
    input=InputConfig(tta_factors=(0.5, 0.75, 1.25, 1.5)),
    train=TrainConfig(vertical_flip=0.5),
    classes=_ISAID,
)

FASTER_RCNN_R50 = Preset(
    name="faster_rcnn_r50",
    summary="The paper's baseline: Faster R-CNN with FPN and separate branches, ResNet-50",
    paper=_ABLATION,
    model=ModelConfig(regression=_USUAL_REGRESSION, roi_pooling=_ROI_ALIGN),
    classes=_COCO,
)

FASTER_RCNN_R50_DLR = Preset(
    name="faster_rcnn_r50_dlr",
    summary="The baseline with dense local regression",
    paper=_ABLATION,
    model=ModelConfig(roi_pooling=_ROI_ALIGN),
    classes=_COCO,
)

FASTER_RCNN_R50_DRP = Preset(
    name="faster_rcnn_r50_drp",
    summary="The baseline with discriminative RoI pooling",
    paper=_ABLATION,
    model=ModelConfig(regression=_USUAL_REGRESSION),
    classes=_COCO,
)

PAPER_PRESETS = (
    R50,
    R101,
    R101_DCN,
    R101_DCN_MULTISCALE,
    R101_INSTANCE,
    R101_UAVDT,
    R101_ISAID,
    FASTER_RCNN_R50,
    FASTER_RCNN_R50_DLR,
    FASTER_RCNN_R50_DRP,
)
