"""Reads the checkpoints of the released code (mmdetection 1.1 naming), strictly.

Their class 0 is the background. Ours is the last, and has no mask channel and no mask quality.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from d2det.checkpoints.names import require_equal
from d2det.checkpoints.pickles import read_pickled_state
from d2det.checkpoints.weights import save_tensors
from d2det.config import ModelConfig, Preset
from d2det.models.build import build_detector
from d2det.presets.categories import categories_of

# Our name, as a regular expression, and theirs.
_NAMES = (
    (r"backbone\.(.+\.conv2)\.offset\.", r"backbone.\1.conv_offset."),
    (r"fpn\.lateral\.(\d)\.", r"neck.lateral_convs.\1.conv."),
    (r"fpn\.output\.(\d)\.", r"neck.fpn_convs.\1.conv."),
    (r"rpn\.conv\.", "rpn_head.rpn_conv."),
    (r"rpn\.logits\.", "rpn_head.rpn_cls."),
    (r"rpn\.deltas\.", "rpn_head.rpn_reg."),
    (r"classification\.pooling\.offsets\.(\d)\.", r"bbox_roi_extractor.roi_layers.\1.offset_fc."),
    (
        r"classification\.pooling\.weighting\.(\d)\.conv\.",
        r"bbox_roi_extractor.roi_layers.\1.awp.weight.conv.",
    ),
    (
        r"classification\.pooling\.weighting\.(\d)\.norm\.",
        r"bbox_roi_extractor.roi_layers.\1.awp.weight.bn.",
    ),
    (r"classification\.fc1\.", "bbox_head.shared_fcs.0."),
    (r"classification\.fc2\.", "bbox_head.shared_fcs.1."),
    (r"classification\.logits\.", "bbox_head.fc_cls."),
    (r"regression\.convs\.(\d)\.norm\.", r"D2Det_head.convs.\1.gn."),
    (r"regression\.convs\.", "D2Det_head.convs."),
    (r"regression\.offsets\.", "D2Det_head.D2Det_reg."),
    (r"regression\.overlap\.", "D2Det_head.D2Det_mask."),
    (r"mask\.logits\.", "D2Det_head.D2Det_instance."),
    (r"mask\.scoring\.fc1\.", "D2Det_head.fcs.0."),
    (r"mask\.scoring\.fc2\.", "D2Det_head.fcs.1."),
    (r"mask\.scoring\.ious\.", "D2Det_head.fc_instance_iou."),
    (r"mask\.", "D2Det_head."),
)
_BACKGROUND_TO_LAST = ("bbox_head.fc_cls.",)
_BACKGROUND_AWAY = ("D2Det_head.D2Det_instance.", "D2Det_head.fc_instance_iou.")
_PORT_PREFIX = "roi_head."
# Files from before DCNv2 was one module.
_OLD_NAMES = ((re.compile(r"\.conv2_offset\."), ".conv2.conv_offset."),)


def convert_file(source: Path | str, destination: Path | str, preset: Preset) -> str:
    """Converts the official checkpoint `source` to our weights file `destination`.

    Returns the digest of the tensors. Ids and names of the classes are those of the preset.
    """
    tensors = convert(read_pickled_state(Path(source)), preset, str(source))
    categories = categories_of(preset.classes)
    return save_tensors(destination, tensors, preset=preset, categories=categories)


def convert(state: Mapping[str, Tensor], preset: Preset, what: str) -> dict[str, Tensor]:
    """Returns the state dict of our network from an official one.

    A `MismatchError` that begins with `what` lists every tensor that is missing, left over or
    misshapen, by its official name.
    """
    if any(name.startswith(_PORT_PREFIX) for name in state):
        raise ValueError(
            f"{what} comes from the authors' port to mmdetection 2.1, whose layers and coordinates "
            "differ; only checkpoints of the released mmdetection 1.1 code can be converted"
        )
    found = _rename_old(state)
    require_equal(found, official_shapes(preset.model), f"{what} does not fit preset {preset.name}")
    names = {name: _official_name(name) for name in _meta_state(preset.model)}
    return {ours: _move_background(theirs, found[theirs]) for ours, theirs in names.items()}


def official_shapes(config: ModelConfig) -> dict[str, Tensor]:
    """Returns tensors on the meta device with the official names and shapes for `config`."""
    shapes = {}
    for name, tensor in _meta_state(config).items():
        theirs = _official_name(name)
        extra = 1 if theirs.startswith(_BACKGROUND_AWAY) else 0
        shape = (tensor.shape[0] + extra, *tensor.shape[1:]) if tensor.ndim else ()
        shapes[theirs] = torch.empty(shape, device="meta")
    return shapes


def _meta_state(config: ModelConfig) -> Mapping[str, Tensor]:
    with torch.device("meta"):
        return build_detector(config).state_dict()


def _official_name(name: str) -> str:
    for pattern, replacement in _NAMES:
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return renamed
    return name


def _move_background(theirs: str, tensor: Tensor) -> Tensor:
    if theirs.startswith(_BACKGROUND_TO_LAST):
        return torch.cat((tensor[1:], tensor[:1]))
    if theirs.startswith(_BACKGROUND_AWAY):
        return tensor[1:].clone()
    return tensor


def _rename_old(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _OLD_NAMES:
            name = pattern.sub(replacement, name)
        renamed[name] = tensor
    return renamed
