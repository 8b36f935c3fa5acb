"""A whole D2Det in miniature: every layer of the real one at widths that run in milliseconds."""

from __future__ import annotations

import torch

from d2det.config import (
    BackboneConfig,
    ClassificationConfig,
    InferenceConfig,
    MaskConfig,
    ModelConfig,
    RegressionConfig,
    RoiPoolingConfig,
    RpnConfig,
)
from d2det.models.build import build_detector
from d2det.models.detector import D2Det
from d2det.structures import ImageBatch

CONFIG = ModelConfig(
    num_classes=3,
    backbone=BackboneConfig(kind="mobilenet_v2", fpn_channels=16),
    rpn=RpnConfig(train_top_n=50, test_pre_nms_top_n=40, test_top_n=30),
    roi_pooling=RoiPoolingConfig(samples_per_bin=1, offset_hidden=16),
    classification=ClassificationConfig(hidden=16),
    regression=RegressionConfig(channels=16, num_convs=2, norm_groups=4, hidden=16),
    mask=MaskConfig(channels=16, scoring_hidden=16),
    inference=InferenceConfig(score_threshold=0.05, max_regressed=20, max_detections=10),
)


def spoken(model: D2Det) -> D2Det:
    """Returns `model` with noise in every layer that starts at zero, so that each has a say."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = parameter.std(correction=0)
            parameter += torch.randn(parameter.shape, generator=generator) * (spread / 2 + 0.05)
    return model


def small_detector(config: ModelConfig = CONFIG) -> D2Det:
    """Returns a detector of `config` in evaluation mode that finds something anywhere."""
    torch.manual_seed(0)
    return spoken(build_detector(config)).eval()


def pictures(*sizes: tuple[int, int], seed: int = 0) -> ImageBatch:
    """Returns a batch of noise pictures of `sizes` (height, width), padded to one shape."""
    height = max(-(-h // 32) * 32 for h, _ in sizes)
    width = max(-(-w // 32) * 32 for _, w in sizes)
    pixels = torch.zeros(len(sizes), 3, height, width)
    generator = torch.Generator().manual_seed(seed)
    for slot, (h, w) in zip(pixels, sizes, strict=True):
        slot[:, :h, :w] = torch.randn(3, h, w, generator=generator)
    return ImageBatch(pixels, torch.tensor(sizes))
