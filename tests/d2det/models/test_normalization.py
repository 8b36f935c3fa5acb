import pytest
import torch
from torch import nn

from d2det.models.dcn import ModulatedDeformConv2d
from d2det.models.normalization import FixedBatchNorm2d, NormalizedSequential, normalized


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
