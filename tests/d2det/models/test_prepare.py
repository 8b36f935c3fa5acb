from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from d2det.models.build import build_detector
from d2det.models.mobilenet import MobileNetV2
from d2det.models.normalization import fold_batch_norms, measure_statistics
from d2det.models.onednn import RoiConv2d, use_onednn
from d2det.models.prepare import DTYPES, FIRST_LAYERS, LAST_LAYERS, prepare_for_inference
from d2det.models.roi_pooling import RoiLinear
from d2det.presets import get_preset
from tests.d2det.models.small import pictures, small_detector


def test_preparing_changes_no_detection():
    model, batch = small_detector(), pictures((90, 120), (64, 64))
    before = model.detect(batch)
    after = prepare_for_inference(copy.deepcopy(model)).detect(batch)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a.labels, b.labels)
        torch.testing.assert_close(a.boxes, b.boxes, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(a.scores, b.scores, rtol=1e-4, atol=1e-4)


def test_layers_for_onednn_compute_what_they_did():
    torch.manual_seed(0)
    layers = nn.ModuleDict(
        {
            "pointwise": nn.Conv2d(24, 40, 1),
            "plain": nn.Conv2d(24, 8, 1, bias=False),
            "strided": nn.Conv2d(24, 8, 1, stride=2),
            "roi": RoiLinear(24, 32),
        }
    ).requires_grad_(False)
    changed = copy.deepcopy(layers)
    use_onednn(changed)
    assert isinstance(changed["roi"], RoiConv2d)
    for size in ((1, 24, 7, 7), (3, 24, 7, 7), (0, 24, 7, 7)):
        x = torch.randn(size)
        for given in (x, x.to(memory_format=torch.channels_last)):
            for name, layer in layers.items():
                torch.testing.assert_close(changed[name](given), layer(given))
    doubles = copy.deepcopy(layers).double()
    use_onednn(doubles)
    assert isinstance(doubles["roi"], RoiLinear)


@pytest.mark.parametrize("precision", ["bf16"])
def test_low_precision_runs_through_and_answers_in_float32(precision):
    model = prepare_for_inference(small_detector(), precision)
    for name, parameter in model.named_parameters():
        is_wide = name.rpartition(".")[0] in FIRST_LAYERS | LAST_LAYERS
        assert parameter.dtype == (torch.float32 if is_wide else DTYPES[precision]), name
    (found,) = model.detect(pictures((90, 120)))
    assert len(found) > 0
    for values in (found.boxes, found.scores, found.masks, found.mask_scores):
        assert values.dtype == torch.float32
        assert values.isfinite().all()


def test_low_precision_features_are_close():
    model, batch = small_detector(), pictures((90, 120))
    exact = model.features(batch)
    rounded = prepare_for_inference(copy.deepcopy(model), "bf16").features(batch)
    for a, b in zip(exact, rounded, strict=True):
        assert (a - b.float()).square().mean().sqrt() < 0.03 * a.square().mean().sqrt()


@torch.no_grad()
def test_a_bottleneck_far_from_zero_costs_no_precision():
    """As in the published weights, whose channels of mean 5 and little variance bfloat16 loses."""
    torch.manual_seed(0)
    trunk, pixels = MobileNetV2(), torch.randn(2, 3, 64, 96)
    bottleneck = trunk.features[1].conv[-1]
    bottleneck.weight.data *= 0.02
    bottleneck.bias.data += 5
    measure_statistics(trunk, pixels)
    exact = trunk(pixels)

    def error(trunk, pixels):
        fold_batch_norms(trunk)
        pairs = zip(exact[:2], trunk.to(pixels.dtype)(pixels), strict=False)
        return max(float((a - b.float()).square().mean().sqrt()) for a, b in pairs)

    centred = copy.deepcopy(trunk)
    centred.centre()
    assert error(copy.deepcopy(centred), pixels) < 1e-3
    assert error(centred, pixels.bfloat16()) < 0.3 * error(trunk, pixels.bfloat16())


def test_a_prepared_network_does_not_learn():
    model = prepare_for_inference(small_detector())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_all_first_and_last_layers_have_the_names_that_keep_them_wide():
    kinds = (small_detector(), build_detector(get_preset("faster_rcnn_r50").model))
    names = {name for model in kinds for name, _ in model.named_modules()}
    assert names >= FIRST_LAYERS | LAST_LAYERS
