from __future__ import annotations

import logging

import pytest
import torch

from d2det.checkpoints.transfer import start_from
from d2det.checkpoints.weights import save_weights
from d2det.config import Preset
from d2det.models.build import build_detector
from d2det.structures import Category
from tests.d2det.models.small import CONFIG, small_detector

CATEGORIES = (Category(3, "car"), Category(7, "ship"), Category(1, "plane"))
OTHERS = (Category(1, "tank"), Category(2, "harbour"))
CLASS_LAYERS = ("classification.logits", "mask.logits", "mask.scoring.ious")


@pytest.fixture
def source(tmp_path):
    preset = Preset(name="small", summary="", model=CONFIG)
    save_weights(tmp_path / "w", small_detector(), preset=preset, categories=CATEGORIES)
    return tmp_path / "w"


def fresh(**changes):
    torch.manual_seed(5)
    return build_detector(CONFIG.model_copy(update=changes))


def copied(model) -> set[str]:
    """Names of the tensors of `model` that are those of the file."""
    theirs = small_detector().state_dict()
    return {
        name
        for name, tensor in model.state_dict().items()
        if name in theirs and tensor.shape == theirs[name].shape and tensor.equal(theirs[name])
    }


def test_the_same_classes_take_everything(source):
    model = fresh()
    assert start_from(model, source, CATEGORIES) == ()
    assert copied(model) == model.state_dict().keys()


@pytest.mark.parametrize("count", [2, 3], ids=["fewer classes", "as many others"])
def test_other_classes_take_all_but_the_class_layers(source, caplog, count):
    model = fresh(num_classes=count)
    before = model.classification.logits.weight.clone()
    with caplog.at_level(logging.INFO):
        untouched = start_from(model, source, (*OTHERS, Category(9, "ferry"))[:count])
    expected = {f"{layer}.{part}" for layer in CLASS_LAYERS for part in ("weight", "bias")}
    assert set(untouched) == expected
    assert torch.equal(model.classification.logits.weight, before)
    assert copied(model) >= model.state_dict().keys() - expected
    assert "classification.logits.weight" in caplog.text


def test_masks_may_be_added_or_left_out(source, tmp_path):
    boxes_only = fresh(mask=None)
    assert start_from(boxes_only, source, CATEGORIES) == ()
    preset = Preset(name="boxes", summary="", model=boxes_only.config)
    save_weights(tmp_path / "b", boxes_only, preset=preset, categories=CATEGORIES)
    untouched = start_from(fresh(), tmp_path / "b", CATEGORIES)
    assert untouched
    assert all(name.startswith("mask.") for name in untouched)


def test_another_network_is_refused_in_one_line(source):
    other = fresh(backbone=CONFIG.backbone.model_copy(update={"fpn_channels": 24}))
    with pytest.raises(ValueError, match=r"does not fit.*misshapen") as raised:
        start_from(other, source, CATEGORIES)
    assert "\n" not in str(raised.value)
