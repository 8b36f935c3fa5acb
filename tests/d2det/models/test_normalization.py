import pytest
import torch
from torch import nn

from d2det.models.dcn import ModulatedDeformConv2d
from d2det.models.mobilenet import MobileNetV2
from d2det.models.normalization import (
    FixedBatchNorm2d,
    NormalizedSequential,
    measure_statistics,
    normalized,
)
from d2det.models.resnet import ResNet
from tests.threads import threads


def layers(**options: int) -> tuple[nn.Conv2d, FixedBatchNorm2d]:
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 12, 3, bias=False, **options).double()
    norm = FixedBatchNorm2d(12).double().train()
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.normal_()
    norm.running_var.uniform_(0.2, 3)
    return convolution, norm


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"groups": 3}, {"dilation": 2}], ids=str
)
def test_one_convolution_gives_values_and_gradients_of_both_layers(options: dict) -> None:
    convolution, norm = layers(**options)
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64, requires_grad=True)
    inputs = (x, convolution.weight, norm.weight, norm.bias)
    both = norm(convolution(x))
    folded = normalized(convolution, norm, x)
    torch.testing.assert_close(folded, both)
    direction = torch.randn_like(both)
    torch.testing.assert_close(
        torch.autograd.grad(folded, inputs, direction), torch.autograd.grad(both, inputs, direction)
    )


def test_a_sequence_keeps_order_and_names_of_its_layers() -> None:
    convolution, norm = layers()
    members = (convolution, norm, nn.ReLU6(), nn.Conv2d(12, 4, 1).double())
    plain, folded = nn.Sequential(*members), NormalizedSequential(*members)
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(folded(x), plain(x))
    assert list(folded.state_dict()) == list(plain.state_dict())


def test_a_deformable_convolution_is_followed_by_its_normalisation() -> None:
    convolution = ModulatedDeformConv2d(6, 12, stride=1).double()
    _, norm = layers()
    x = torch.randn(1, 6, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(normalized(convolution, norm, x), norm(convolution(x)))


def spreads(trunk: nn.Module, pixels: torch.Tensor) -> list[float]:
    with torch.no_grad():
        return [float(stage.std()) for stage in trunk(pixels)]


@pytest.mark.parametrize("build", [MobileNetV2, lambda: ResNet(50)], ids=["mobilenet", "resnet"])
def test_a_random_trunk_is_normalised_by_measured_statistics(build) -> None:
    torch.manual_seed(0)
    trunk, pixels = build(), torch.randn(2, 3, 64, 96)
    seen: list[tuple[float, float]] = []

    def look(_: nn.Module, __: object, out: torch.Tensor) -> None:
        std, mean = torch.std_mean(out, dim=(0, 2, 3))
        seen.append((float(mean.abs().max()), float(std.max())))

    measure_statistics(trunk, pixels)
    for norm in trunk.modules():
        if isinstance(norm, FixedBatchNorm2d):
            norm.is_measuring = True  # the path that calls the norms, so that hooks see them
            norm.register_forward_hook(look)
    with torch.no_grad():
        trunk(pixels)
    assert len(seen) > 50
    assert max(mean for mean, _ in seen) < 1e-3
    assert [std for _, std in seen] == pytest.approx([1] * len(seen), abs=0.1)


@pytest.mark.parametrize(
    "build", [MobileNetV2, lambda: ResNet(50, deformable=True)], ids=["mobilenet", "deformable"]
)
def test_measured_statistics_do_not_depend_on_the_number_of_threads(build) -> None:
    """Nor, as they are rounded sums of float64, on how a processor adds up."""
    pixels, found = torch.randn(4, 3, 160, 192, generator=torch.Generator().manual_seed(1)), []
    for count in (1, 2, 3):
        torch.manual_seed(0)
        trunk = build().to(memory_format=torch.channels_last)
        with threads(count):
            measure_statistics(trunk, pixels)
        found.append(trunk.state_dict())
    assert {tensor.dtype for tensor in found[0].values()} == {torch.float32, torch.int64}
    for other in found[1:]:
        assert all(torch.equal(found[0][name], tensor) for name, tensor in other.items())


def test_signals_of_a_random_trunk_fade_without_statistics_and_not_with_them() -> None:
    torch.manual_seed(0)
    trunk, pixels = MobileNetV2(), torch.randn(2, 3, 64, 96)
    assert spreads(trunk, pixels)[2] < 0.05
    measure_statistics(trunk, pixels)
    assert min(spreads(trunk, pixels)) > 0.3


def test_measuring_ends_with_the_call() -> None:
    torch.manual_seed(0)
    trunk = MobileNetV2()
    measure_statistics(trunk, torch.randn(1, 3, 64, 64))
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    trunk(torch.randn(1, 3, 64, 64) * 5)
    assert all(torch.equal(before[name], t) for name, t in trunk.state_dict().items())
