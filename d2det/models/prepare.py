"""Turns a trained network into one that only infers, and does so fast."""

from __future__ import annotations

from typing import Literal

import torch

from d2det.models.detector import D2Det
from d2det.models.mobilenet import MobileNetV2
from d2det.models.normalization import fold_batch_norms
from d2det.models.onednn import use_onednn

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

FIRST_LAYERS = frozenset(("backbone.conv1", "backbone.features.0.0"))
"""Their input is the picture: see `precision.narrow`."""
LAST_LAYERS = frozenset(
    (
        "rpn.logits",
        "rpn.deltas",
        "classification.logits",
        "regression.offsets",
        "regression.overlap",
        "regression.deltas",
        "mask.logits",
        "mask.scoring.ious",
    )
)
"""Their outputs are ranked, thresholded and decoded: see `precision.answer`."""


def prepare_for_inference(model: D2Det, precision: Precision = "fp32") -> D2Det:
    """Returns `model` itself, changed for inference: it cannot be trained or saved afterwards.

    Normalisations are folded into convolutions before rounding to `precision`, and weights are laid
    out channels last. The first layer, the last ones of all branches, box arithmetic, softmax and
    pooling weights stay float32 in any precision: the network casts where they begin. `model`
    should be on the device where it will run, for which some layers are replaced.
    """
    model.eval().requires_grad_(False)
    if isinstance(model.backbone, MobileNetV2):
        model.backbone.centre()
    fold_batch_norms(model)
    model.to(dtype=DTYPES[precision])
    for name, layer in model.named_modules():
        if name in FIRST_LAYERS | LAST_LAYERS:
            layer.float()
    use_onednn(model)
    model.to(memory_format=torch.channels_last)
    return model
