"""adaptive_pool against the official layer's numbers and its own twin."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d2det_ops import adaptive_pool, twins_only
from d2det_ops._library import has_kernel, op
from tests.oracle.ops import case, drawn
from tests.threads import threads

WINDOWS = [(3, 2, 1), (2, 2, 0), (3, 1, 1), (1, 1, 0), (2, 3, 1), (5, 2, 2)]
FORMATS = [torch.contiguous_format, torch.channels_last]

needs_kernel = pytest.mark.skipif(
    not has_kernel("adaptive_pool", "cpu"), reason="the op is not compiled here"
)


@pytest.fixture(params=["compiled", "twin"])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with twins_only() if request.param == "twin" else contextlib.nullcontext():
        yield


def made_inputs(
    rois: int = 3,
    channels: int = 5,
    height: int = 7,
    width: int = 6,
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
) -> list[Tensor]:
    """Returns x, logits, weight and bias; logits with means and deviations of their own."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    logits = normal(rois, channels, height, width) * (1 + 3 * normal(rois, channels, 1, 1) ** 2)
    maps = [normal(rois, channels, height, width), logits + 5 * normal(rois, channels, 1, 1)]
    wide = torch.promote_types(dtype, torch.float32)
    return [m.to(dtype).contiguous(memory_format=memory_format) for m in maps] + [
        normal(channels).to(wide),
        normal(channels).to(wide),
    ]


def with_gradients(inputs: list[Tensor], **options: Any) -> list[Tensor]:
    """Returns the output, and the gradients of all inputs for a fixed output gradient."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    out = adaptive_pool(leaves[0], leaves[1], leaves[2], leaves[3], **options)
    generator = torch.Generator().manual_seed(1)
    out.backward(torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]  # type: ignore[list-item]


@pytest.mark.usefixtures("backend")
def test_pooling_equals_the_official_layer() -> None:
    x = drawn("awp.in", (5, 8, 14, 14), 0.3, 1.0)
    logits = F.conv2d(x, drawn("awp.conv.weight", (8, 8, 3, 3), 0, 0.15), padding=1)
    weight, bias = drawn("awp.bn.weight", (8,), 0.6, 0.2), drawn("awp.bn.bias", (8,), 0, 0.3)
    out = adaptive_pool(x, logits, weight, bias)
    torch.testing.assert_close(out, case("awp_out"), atol=2e-5, rtol=1e-4)


@needs_kernel
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("channels", [1, 16, 37])
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_kernel_equals_the_twin(
    window: tuple[int, int, int], channels: int, memory_format: torch.memory_format
) -> None:
    kernel_size, stride, padding = window
    options = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
    inputs = made_inputs(channels=channels, dtype=torch.float64, memory_format=memory_format)
    found = with_gradients(inputs, **options)
    with twins_only():
        expected = with_gradients(inputs, **options)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_everything_is_computed_in_float32(dtype: torch.dtype) -> None:
    """The result of rounded inputs is the rounded result, although exp(12) overflows float16."""
    inputs = made_inputs(height=14, width=14, dtype=dtype)
    found, *gradients = with_gradients(inputs)
    out, *expected = with_gradients([t.double() for t in inputs])
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), out, rtol=eps, atol=2e-5)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2 * eps, atol=max(2e-4, 30 * eps))


@needs_kernel
@pytest.mark.parametrize("bias", [-200.0, -30.0, 0.0, 30.0, 200.0])
def test_gates_far_open_and_shut_stay_accurate(bias: float) -> None:
    x, logits, weight, shift = made_inputs()
    found = with_gradients([x, logits, weight * 20, shift + bias])
    expected = with_gradients([t.double() for t in (x, logits, weight * 20, shift + bias)])
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1].double(), expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("backend")
def test_equal_logits_give_the_plain_average() -> None:
    x, logits, weight, bias = made_inputs()
    out = adaptive_pool(x, torch.full_like(logits, 3.0), weight, bias)
    expected = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    torch.testing.assert_close(out, expected)


@pytest.mark.usefixtures("backend")
def test_a_bad_logit_spoils_its_own_map_only() -> None:
    inputs = made_inputs()
    inputs[1][1, 2, 3, 3] = float("nan")
    out = adaptive_pool(*inputs)
    assert out[1, 2].isnan().all()
    assert int(out.isnan().any(-1).any(-1).sum()) == 1


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_memory_format_is_that_of_x(memory_format: torch.memory_format) -> None:
    inputs = made_inputs(memory_format=memory_format)
    out, grad_x, *_ = with_gradients(inputs)
    assert out.is_contiguous(memory_format=memory_format)
    assert grad_x.is_contiguous(memory_format=memory_format)


@needs_kernel
def test_memory_layout_of_arguments_does_not_matter() -> None:
    inputs = made_inputs()
    scattered = [torch.stack((t, t), -1)[..., 0] for t in inputs]
    mixed = [inputs[0].contiguous(), *inputs[1:]]
    for a, b, c in zip(
        with_gradients(inputs), with_gradients(scattered), with_gradients(mixed), strict=True
    ):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.usefixtures("backend")
def test_no_rois_give_an_empty_output_and_zero_gradients() -> None:
    out, *gradients = with_gradients(made_inputs(rois=0))
    assert out.shape == (0, 5, 4, 3)
    assert [g.shape for g in gradients[2:]] == [(5,), (5,)]
    assert all(not gradient.any() for gradient in gradients)


@needs_kernel
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    found = []
    for count in (1, 2, 3, 7):
        with threads(count):
            found.append(with_gradients(made_inputs(rois=40, channels=37)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@needs_kernel
def test_backward_keeps_two_maps() -> None:
    inputs = [t.requires_grad_() for t in made_inputs(rois=8, channels=32)]
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        adaptive_pool(*inputs)
    a_map = inputs[0].numel()
    assert sum(n == a_map for n in kept) == 2
    assert sum(n for n in kept if n != a_map) <= 2 * 8 * 32 + 2 * 32


@needs_kernel
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("rois", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_operator_keeps_the_rules_of_torch(
    memory_format: torch.memory_format, rois: int, dtype: torch.dtype
) -> None:
    inputs = made_inputs(rois, dtype=dtype, memory_format=memory_format)
    leaves = [t.requires_grad_() for t in inputs]
    torch.library.opcheck(op("adaptive_pool"), (*leaves, 1e-5, 12.0, 3, 2, 1))


@needs_kernel
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_gradients_are_derivatives(window: tuple[int, int, int]) -> None:
    kernel_size, stride, padding = window
    inputs = [t.requires_grad_() for t in made_inputs(2, 2, 5, 6, dtype=torch.float64)]
    # Of order one, so that finite differences resolve the gate.
    inputs[1] = torch.randn_like(inputs[1]).detach().requires_grad_()

    def pooled(*tensors: Tensor) -> Tensor:
        return adaptive_pool(
            *tensors, gate_scale=3.0, kernel_size=kernel_size, stride=stride, padding=padding
        )

    assert torch.autograd.gradcheck(pooled, inputs)


class Pool(torch.nn.Module):
    """The op in a module, with something around it."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns twice the pooled features."""
        return adaptive_pool(*inputs) * 2


@needs_kernel
def test_operator_exports_for_any_number_of_rois() -> None:
    inputs = made_inputs()
    rois = {0: torch.export.Dim("rois", min=2)}
    shapes = ((rois, rois, None, None),)
    exported = torch.export.export(Pool(), tuple(inputs), dynamic_shapes=shapes).module()
    for count in (3, 7):
        x, logits, weight, bias = made_inputs(count)
        assert torch.equal(exported(x, logits, weight, bias), Pool()(x, logits, weight, bias))


@needs_kernel
def test_operator_and_its_gradients_compile_into_one_graph() -> None:
    pool = torch.compile(Pool(), backend="aot_eager", fullgraph=True)
    results = []
    for run in (Pool(), pool):
        leaves = [t.detach().requires_grad_() for t in made_inputs()]
        out = run(*leaves)
        out.square().sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("backend")
def test_autocast_keeps_the_dtype_of_x() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert adaptive_pool(*made_inputs(dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3, 5, 7, 5)}, "logits"),
        ({"logits": torch.zeros(3, 5, 7, 6, dtype=torch.float64)}, "dtype"),
        ({"weight": torch.zeros(4)}, "weight"),
        ({"gate_scale": 0.0}, "gate_scale"),
        ({"gate_scale": 100.0}, "gate_scale"),
        ({"kernel_size": 0}, "kernel_size"),
        ({"padding": 2}, "padding"),
        ({"kernel_size": 11, "padding": 0}, "window of 11"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_senseless_arguments_are_named(change: dict[str, Any], message: str) -> None:
    names = ("x", "logits", "weight", "bias")
    arguments = {**dict(zip(names, made_inputs(), strict=True)), **change}
    with pytest.raises(ValueError, match=message):
        adaptive_pool(**arguments)
