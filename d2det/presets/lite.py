"""Small D2Dets for small machines: every idea of the paper, at widths that train on a few cores."""

from __future__ import annotations

from d2det.config import (
    BackboneConfig,
    ClassificationConfig,
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

_MODEL = ModelConfig(
    backbone=BackboneConfig(kind="mobilenet_v2", fpn_channels=128),
    rpn=RpnConfig(train_top_n=1000, test_pre_nms_top_n=500, test_top_n=300),
    roi_sampler=RoiSamplerConfig(samples_per_image=128),
    roi_pooling=RoiPoolingConfig(samples_per_bin=1, offset_hidden=256),
    classification=ClassificationConfig(hidden=512),
    regression=RegressionConfig(
        channels=192,
        num_convs=4,
        norm_groups=12,
        max_samples_per_image=48,
        initial_offset=0.5,
    ),
    inference=InferenceConfig(max_regressed=100),
)


def _with_masks(model: ModelConfig, mask: MaskConfig) -> ModelConfig:
    """The network with an instance branch, which costs too much for boxes that hardly count."""
    inference = model.inference.model_copy(update={"score_threshold": 0.05})
    return model.model_copy(update={"mask": mask, "inference": inference})


_INPUT = InputConfig(short_side=448, long_side=768)
_TRAIN = TrainConfig(
    epochs=12,
    global_batch=4,
    # SGD at rates that get anywhere in a dozen epochs diverged (loss 7 -> 350 within 40 steps).
    optimizer="adamw",
    lr=6e-4,
    weight_decay=0.01,
    schedule="cosine",
    warmup_steps=100,
    clip_grad_norm=35.0,
    ema_decay=0.998,
    vertical_flip=0.5,
    short_sides=(352, 544),
)

LITE = Preset(
    name="d2det_lite",
    summary="Detection, MobileNetV2 trunk and light heads",
    paper="not in the paper",
    model=_MODEL,
    input=_INPUT,
    train=_TRAIN,
)

LITE_INSTANCE = Preset(
    name="d2det_lite_instance",
    summary="Instance segmentation, MobileNetV2 trunk and light heads",
    paper="not in the paper",
    model=_with_masks(_MODEL, MaskConfig(channels=128, scoring_hidden=256)),
    input=_INPUT,
    train=_TRAIN,
)

_TINY_MODEL = ModelConfig(
    # No stage is frozen: without pre-trained weights there is nothing to keep.
    backbone=BackboneConfig(kind="mobilenet_v2", fpn_channels=64, frozen_stages=0),
    rpn=RpnConfig(anchor_scale=6.0, train_top_n=400, test_pre_nms_top_n=300, test_top_n=200),
    roi_sampler=RoiSamplerConfig(samples_per_image=64),
    roi_pooling=RoiPoolingConfig(samples_per_bin=1, offset_hidden=64),
    classification=ClassificationConfig(hidden=256),
    regression=RegressionConfig(
        channels=96, num_convs=3, norm_groups=12, max_samples_per_image=16, initial_offset=0.5
    ),
    inference=InferenceConfig(max_regressed=100),
)
_TINY_INPUT = InputConfig(short_side=320, long_side=544)
_TINY_TRAIN = _TRAIN.model_copy(update={"short_sides": None})

TINY = Preset(
    name="d2det_tiny",
    summary="Detection that learns from nothing in minutes on two cores, to try things",
    paper="not in the paper",
    model=_TINY_MODEL,
    input=_TINY_INPUT,
    train=_TINY_TRAIN,
)

TINY_INSTANCE = Preset(
    name="d2det_tiny_instance",
    summary="Instance segmentation that learns from nothing in minutes on two cores",
    paper="not in the paper",
    model=_with_masks(_TINY_MODEL, MaskConfig(channels=64, scoring_hidden=64)),
    input=_TINY_INPUT,
    train=_TINY_TRAIN,
)

LITE_PRESETS = (LITE, LITE_INSTANCE, TINY, TINY_INSTANCE)
