from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torchvision
from torch import nn

from d2det.models.dcn import ModulatedDeformConv2d
from d2det.models.mobilenet import MobileNetV2
from d2det.models.normalization import FixedBatchNorm2d, fold_batch_norms
from d2det.models.resnet import ResNet
from tests.oracle.ops import case, drawn


def randomise_norms(model: nn.Module) -> None:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def resnet_stages(model: nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    x, stages = model.maxpool(model.relu(model.bn1(model.conv1(pixels)))), []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = stage(x)
        stages.append(x)
    return stages


def mobilenet_stages(model: nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    x, stages = pixels, []
    for i, layer in enumerate(model.features):
        x = layer(x)
        if i in (3, 6, 13, 18):
            stages.append(x)
    return stages


TRUNKS = {
    "resnet50": (lambda: ResNet(50), torchvision.models.resnet50, resnet_stages),
    "mobilenet_v2": (MobileNetV2, torchvision.models.mobilenet_v2, mobilenet_stages),
}


@pytest.mark.parametrize(("ours", "theirs", "stages"), TRUNKS.values(), ids=TRUNKS.keys())
@torch.no_grad()
def test_trunk_equals_torchvision_under_the_same_names(ours, theirs, stages):
    reference = theirs(weights=None).eval()
    randomise_norms(reference)
    trunk = ours()
    state = {n: t for n, t in reference.state_dict().items() if n.split(".")[0] in dir(trunk)}
    trunk.load_state_dict(state)
    pixels = torch.randn(1, 3, 64, 96)
    expected = stages(reference, pixels)
    found = trunk(pixels)
    assert [x.shape[1] for x in found] == list(trunk.out_channels)
    assert [x.shape[-2:] for x in found] == [(64 // s, 96 // s) for s in (4, 8, 16, 32)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trunk", [ResNet(50, deformable=True), MobileNetV2()], ids=["dcn", "mob"])
@torch.no_grad()
def test_folding_normalisations_changes_nothing(trunk):
    randomise_norms(trunk)
    pixels = torch.randn(1, 3, 64, 64)
    before = trunk(pixels)
    fold_batch_norms(trunk)
    assert not any(isinstance(m, FixedBatchNorm2d) for m in trunk.modules())
    for a, b in zip(before, trunk(pixels), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_statistics_never_move_but_scale_and_shift_learn():
    norm = FixedBatchNorm2d(4).train()
    norm(torch.randn(2, 4, 3, 3) + 5).sum().backward()
    assert torch.equal(norm.running_mean, torch.zeros(4))
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None


@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_frozen_stages_do_not_learn(frozen):
    resnet, mobile = ResNet(50, frozen_stages=frozen), MobileNetV2(frozen_stages=frozen)
    stages = [[resnet.conv1, resnet.bn1], [resnet.layer1], [resnet.layer2], [resnet.layer3]]
    ends = [0, 3, 6, 13, 18]
    stages_mobile = [[mobile.features[0]]]
    stages_mobile += [list(mobile.features[a + 1 : b + 1]) for a, b in pairwise(ends)]
    for i in range(4):
        for module in (*stages[i], *stages_mobile[i]):
            assert all(p.requires_grad == (i > frozen) for p in module.parameters())


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_deformable_convolution_equals_the_official_one(stride):
    layer = ModulatedDeformConv2d(8, 8, stride=stride)
    layer.weight.copy_(drawn("dcn.weight", (8, 8, 3, 3), 0, 0.2))
    layer.offset.weight.copy_(drawn("dcn.off.w", (27, 8, 3, 3), 0, 0.2))
    layer.offset.bias.copy_(drawn("dcn.off.b", (27,), 0, 0.5))
    features = drawn("feat", (2, 8, 25, 34), 0, 1.0)[:1]
    torch.testing.assert_close(layer(features), case(f"dcn_out_s{stride}"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
@torch.no_grad()
def test_deformable_convolution_starts_as_half_a_plain_one(dtype, rtol):
    layer = ModulatedDeformConv2d(4, 6).to(dtype)
    x = torch.randn(1, 4, 9, 9, dtype=dtype)
    plain = nn.functional.conv2d(x, layer.weight, padding=1)
    torch.testing.assert_close(layer(x), plain / 2, rtol=rtol, atol=rtol / 10)
