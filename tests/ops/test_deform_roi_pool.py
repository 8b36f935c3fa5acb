"""deform_roi_pool against the official kernels' numbers, torchvision and its own twin."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from d2det_ops import deform_roi_pool, twins_only
from d2det_ops._library import has_kernel, op
from tests.oracle.ops import case, drawn, half_open
from tests.threads import threads

STRIDES = [4, 8]
RULES = [("deform", False), ("deform", True), ("align", False)]

needs_kernel = pytest.mark.skipif(
    not has_kernel("deform_roi_pool", "cpu"), reason="the op is not compiled here"
)


@pytest.fixture(params=["compiled", "twin"])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with twins_only() if request.param == "twin" else contextlib.nullcontext():
        yield


# --- against the official kernels ----------------------------------------------------------------


def official_pool(feature: Tensor, size: int, samples: int, **options: Any) -> Tensor:
    rois = half_open(case("rois"))
    levels = torch.zeros(len(rois), dtype=torch.int64)
    return deform_roi_pool(
        [feature], rois, levels, strides=[8], output_size=size, samples=samples, **options
    )


def official_feature() -> Tensor:
    return drawn("feat", (2, 8, 25, 34), 0, 1.0)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("samples", [1, 2])
def test_pooling_without_offsets_equals_the_official_kernel(samples: int) -> None:
    expected = case(f"dpool_notrans_P3_S{samples}")
    out = official_pool(official_feature(), 3, samples)
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("samples", [1, 2])
def test_pooling_with_offsets_equals_the_official_kernel(samples: int) -> None:
    out = official_pool(official_feature(), 14, samples, offsets=case("offsets7"))
    torch.testing.assert_close(out[:12], case(f"dpool_trans_P14_S{samples}"), atol=2e-5, rtol=1e-5)
    sums = case(f"dpool_trans_P14_S{samples}_sum")
    torch.testing.assert_close(out.sum((1, 2, 3)), sums.to(out.dtype), atol=5e-3, rtol=1e-4)


@pytest.mark.usefixtures("backend")
def test_align_sampling_equals_the_official_roi_align() -> None:
    out = official_pool(official_feature(), 14, 2, sampling="align")
    torch.testing.assert_close(out[:12], case("roialign_14_2"), atol=2e-5, rtol=1e-5)
    sums = case("roialign_14_2_sum")
    torch.testing.assert_close(out.sum((1, 2, 3)), sums.to(out.dtype), atol=5e-3, rtol=1e-4)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("samples", [1, 2])
def test_gradients_equal_the_official_kernel(samples: int) -> None:
    feature, offsets = official_feature().requires_grad_(), case("offsets7").requires_grad_()
    out = official_pool(feature, 14, samples, offsets=offsets)
    out.backward(drawn("gradout", (40, 8, 14, 14), 0, 1.0))
    assert feature.grad is not None
    torch.testing.assert_close(
        feature.grad[:, :2], case(f"dpool_grad_feat_S{samples}"), atol=2e-4, rtol=1e-4
    )
    norm = case(f"dpool_grad_feat_norm_S{samples}").float()
    torch.testing.assert_close(feature.grad.norm()[None], norm, atol=0, rtol=1e-4)
    torch.testing.assert_close(
        offsets.grad, case(f"dpool_grad_off7_S{samples}"), atol=2e-3, rtol=1e-3
    )


@pytest.mark.usefixtures("backend")
def test_align_sampling_equals_torchvision_moved_by_half_a_cell() -> None:
    call = made_call(sampling="align", with_offsets=False, dtype=torch.float64)
    rois = call.rois.double()
    for level, stride in enumerate(STRIDES):
        rows = call.levels == level
        moved = rois[rows] + torch.tensor([0, 1, 1, 1, 1]) * stride / 2
        expected = torchvision.ops.roi_align(
            call.features[level], moved, 4, 1 / stride, 2, aligned=True
        )
        torch.testing.assert_close(call.run()[rows], expected, atol=1e-9, rtol=0)


# --- against the twin ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """Arguments of one call, and its gradients."""

    features: list[Tensor]
    rois: Tensor
    levels: Tensor
    offsets: Tensor | None
    samples: int = 2
    sampling: str = "deform"

    def run(self) -> Tensor:
        return deform_roi_pool(
            self.features, self.rois, self.levels, strides=STRIDES, output_size=4,
            samples=self.samples, offsets=self.offsets, sampling=self.sampling,  # type: ignore[arg-type]
        )  # fmt: skip

    def with_gradients(self) -> list[Tensor]:
        """Returns the output, and the gradients of maps and offsets for a fixed output gradient."""
        leaves = [f.detach().requires_grad_() for f in self.features]
        offsets = None if self.offsets is None else self.offsets.detach().requires_grad_()
        out = replace(self, features=leaves, offsets=offsets).run()
        generator = torch.Generator().manual_seed(1)
        out.backward(torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype))
        found = [out.detach(), *(leaf.grad for leaf in leaves)]
        return found if offsets is None else [*found, offsets.grad]  # type: ignore[list-item]


def made_call(
    *,
    sampling: str = "deform",
    with_offsets: bool = True,
    samples: int = 2,
    channels: int = 5,
    count: int = 30,
    dtype: torch.dtype = torch.float32,
) -> Call:
    """Two levels of two pictures of 60 x 52, and RoIs of all sizes in, across and beyond them."""
    generator = torch.Generator().manual_seed(7)
    size = torch.tensor([60.0, 52.0])
    centre = (torch.rand(count, 2, generator=generator) * 1.4 - 0.2) * size
    half = torch.exp(torch.randn(count, 2, generator=generator) * 1.2 + 2) / 2
    image = torch.randint(0, 2, (count, 1), generator=generator).float()
    maps = [
        torch.randn(2, channels, h, w, generator=generator, dtype=torch.float64).to(dtype)
        for h, w in ((13, 15), (7, 8))
    ]
    offsets = torch.randn(count, 2, 2, 2, generator=generator) * 3
    return Call(
        features=[m.contiguous(memory_format=torch.channels_last) for m in maps],
        rois=torch.cat((image, centre - half, centre + half), 1),
        levels=torch.randint(0, 2, (count,), generator=generator),
        offsets=offsets.to(torch.promote_types(dtype, torch.float32)) if with_offsets else None,
        samples=samples,
        sampling=sampling,
    )


@needs_kernel
@pytest.mark.parametrize(("sampling", "with_offsets"), RULES)
@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 5, 40, 200], ids=lambda c: f"{c}ch")
def test_kernel_equals_the_twin(
    sampling: str, with_offsets: bool, samples: int, channels: int
) -> None:
    call = made_call(
        sampling=sampling,
        with_offsets=with_offsets,
        samples=samples,
        channels=channels,
        dtype=torch.float64,
    )
    found = call.with_gradients()
    with twins_only():
        expected = call.with_gradients()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)
        assert a.stride() == b.stride() or a.shape[1] == 1


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_are_kept_in_float32(dtype: torch.dtype) -> None:
    """The result of rounded inputs is the rounded result: one rounding, whatever was summed."""
    call = made_call(dtype=dtype, channels=20)
    found = call.with_gradients()
    wide = replace(
        call,
        features=[f.double() for f in call.features],
        rois=call.rois.double(),
        offsets=None if call.offsets is None else call.offsets.double(),
    )
    out = wide.run()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found[0].double(), out, rtol=eps, atol=2e-5)
    if dtype != torch.float32:
        single = replace(call, features=[f.float() for f in call.features]).with_gradients()
        for a, b in zip(found[1:], single[1:], strict=True):
            # The output's gradient was rounded too, hence the absolute part.
            torch.testing.assert_close(a.float(), b, rtol=2 * eps, atol=30 * eps)


@pytest.mark.usefixtures("backend")
def test_memory_layout_of_arguments_does_not_matter() -> None:
    call = made_call()
    assert call.offsets is not None
    scattered = replace(
        call,
        features=[torch.stack((f, f), -1)[..., 0] for f in call.features],
        rois=call.rois.T.contiguous().T,
        levels=torch.stack((call.levels, call.levels), 1)[:, 0],
        offsets=call.offsets.transpose(2, 3).contiguous().transpose(2, 3),
    )
    packed = replace(call, features=[f.contiguous() for f in call.features])
    for a, b, c in zip(
        call.with_gradients(), scattered.with_gradients(), packed.with_gradients(), strict=True
    ):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("contiguous", [True, False])
def test_output_is_channels_last(contiguous: bool) -> None:
    call = made_call()
    if contiguous:
        call = replace(call, features=[f.contiguous() for f in call.features])
    assert call.run().is_contiguous(memory_format=torch.channels_last)


# --- edges ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("images", [0, 2])
def test_no_rois_give_an_empty_output_and_zero_gradients(images: int) -> None:
    call = made_call(count=0)
    call = replace(call, features=[f[:images] for f in call.features])
    out, *gradients = call.with_gradients()
    assert out.shape == (0, 5, 4, 4)
    assert all(not gradient.any() for gradient in gradients)
    assert [g.shape for g in gradients[:2]] == [f.shape for f in call.features]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("sampling", ["deform", "align"])
def test_a_level_without_cells_gives_zeros(sampling: str) -> None:
    call = made_call(sampling=sampling, with_offsets=False)
    call = replace(call, features=[call.features[0], call.features[1][:, :, :0]])
    out, *gradients = call.with_gradients()
    assert not out[call.levels == 1].any()
    assert out[call.levels == 0].any()
    assert gradients[1].shape == call.features[1].shape


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("sampling", ["deform", "align"])
@pytest.mark.parametrize(
    "box",
    [
        (200, 200, 240, 240),
        (-90, 4, -50, 40),
        (float("nan"), 4, 30, 30),
        (4, float("-inf"), 30, float("inf")),
        (1e30, 1e30, 2e30, 2e30),
    ],
    ids=["beyond", "before", "nan", "infinite", "huge"],
)
def test_rois_outside_the_picture_give_zeros(sampling: str, box: tuple[float, ...]) -> None:
    call = made_call(sampling=sampling, with_offsets=False, count=1)
    out, *gradients = replace(call, rois=torch.tensor([[0.0, *box]])).with_gradients()
    assert not out.any()
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("sampling", ["deform", "align"])
def test_an_inverted_roi_reads_like_an_empty_one(sampling: str) -> None:
    call = made_call(sampling=sampling, with_offsets=False, count=2)
    rois = torch.tensor([[0.0, 20, 20, 12, 12], [0.0, 20, 20, 20, 20]])
    out = replace(call, rois=rois, levels=torch.zeros(2, dtype=torch.int64)).run()
    torch.testing.assert_close(out[0], out[1])


@pytest.mark.usefixtures("backend")
def test_offsets_have_no_slope_where_samples_are_clamped_or_on_a_cell() -> None:
    """As in the official kernel: floor and ceil of such a position are the same cell."""
    feature = drawn("feat", (2, 8, 25, 34), 0, 1.0)[:1].requires_grad_()
    # x: starts at -0.5 with bins of 1/4, so two of four columns are clamped, one is on a cell.
    rois = torch.tensor([[0.0, 0, 40, 4, 80]])
    offsets = torch.zeros(1, 2, 4, 4, requires_grad=True)
    levels = torch.zeros(1, dtype=torch.int64)
    out = deform_roi_pool(
        [feature], rois, levels, strides=[4], output_size=4, samples=1, offsets=offsets
    )
    out.sum().backward()
    assert offsets.grad is not None
    slope_x = offsets.grad[0, 0]
    assert not slope_x[:, :3].any()
    assert slope_x[:, 3].all()


@needs_kernel
@pytest.mark.parametrize(("level", "image"), [(2, 0), (-1, 0), (0, 2), (0, -1), (0, float("nan"))])
def test_a_roi_of_a_missing_map_is_refused(level: int, image: float) -> None:
    call = made_call(count=3)
    levels, rois = call.levels.clone(), call.rois.clone()
    levels[1], rois[1, 0] = level, image
    with pytest.raises(RuntimeError, match="RoI 1 names"):
        replace(call, levels=levels, rois=rois).run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": []}, "features"),
        ({"rois": torch.zeros(3, 4)}, "rois"),
        ({"levels": torch.zeros(3)}, "levels"),
        ({"strides": [4]}, "strides"),
        ({"output_size": 0}, "output_size"),
        ({"samples": 0}, "samples"),
        ({"offsets": torch.zeros(3, 2, 3, 3)}, "divisible"),
        ({"offsets": torch.zeros(3, 2, 2, 2), "sampling": "align"}, "no offsets"),
        ({"sampling": "nearest"}, "nearest"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_senseless_arguments_are_named(change: dict[str, Any], message: str) -> None:
    call = made_call(count=3)
    arguments: dict[str, Any] = {
        "features": call.features, "rois": call.rois, "levels": call.levels, "strides": STRIDES,
        "output_size": 4, "samples": 2, **change,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        deform_roi_pool(**arguments)


# --- as a torch operator -------------------------------------------------------------------------


@needs_kernel
@pytest.mark.parametrize(("sampling", "with_offsets"), RULES)
def test_results_do_not_depend_on_the_number_of_threads(sampling: str, with_offsets: bool) -> None:
    call = made_call(sampling=sampling, with_offsets=with_offsets, channels=200, count=60)
    found = []
    for count in (1, 2, 3, 7):
        with threads(count):
            found.append(call.with_gradients())
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@needs_kernel
@pytest.mark.parametrize(("sampling", "with_offsets"), RULES)
@pytest.mark.parametrize(
    ("dtype", "count", "packed"),
    [
        (torch.float32, 4, False),
        (torch.float64, 4, False),
        (torch.float16, 4, False),
        (torch.bfloat16, 4, False),
        (torch.float32, 4, True),
        (torch.float32, 0, False),
    ],
    ids=["float32", "float64", "float16", "bfloat16", "NCHW", "empty"],
)
def test_operator_keeps_the_rules_of_torch(
    sampling: str, with_offsets: bool, dtype: torch.dtype, count: int, packed: bool
) -> None:
    call = made_call(sampling=sampling, with_offsets=with_offsets, count=count, dtype=dtype)
    if packed:
        call = replace(call, features=[f.contiguous() for f in call.features])
    features = [f.requires_grad_() for f in call.features]
    offsets = None if call.offsets is None else call.offsets.requires_grad_()
    align = sampling == "align"
    arguments = (features, call.rois, call.levels, offsets, [0.25, 0.125], 4, 2, 0.1, align)
    torch.library.opcheck(op("deform_roi_pool"), arguments)


@needs_kernel
@pytest.mark.parametrize(("sampling", "with_offsets"), RULES)
def test_gradients_are_derivatives(sampling: str, with_offsets: bool) -> None:
    call = made_call(
        sampling=sampling, with_offsets=with_offsets, count=5, channels=3, dtype=torch.float64
    )
    # Away from half pixels, where no sample of these RoIs lies on a cell or at the border.
    call = replace(call, rois=call.rois.double() + 0.01)
    leaves = [f.requires_grad_() for f in call.features]
    if call.offsets is not None:
        leaves.append(call.offsets.double().requires_grad_())

    def pooled(*tensors: Tensor) -> Tensor:
        offsets = tensors[2] if with_offsets else None
        return replace(call, features=list(tensors[:2]), offsets=offsets).run()

    assert torch.autograd.gradcheck(pooled, leaves)


class Pool(torch.nn.Module):
    """The op in a module, with something around it."""

    def forward(self, maps: list[Tensor], rois: Tensor, levels: Tensor, offsets: Tensor) -> Tensor:
        """Returns twice the pooled features."""
        call = Call(features=maps, rois=rois, levels=levels, offsets=offsets)
        return call.run() * 2


@needs_kernel
def test_operator_exports_for_any_number_of_rois() -> None:
    call = made_call(count=6)
    arguments = (call.features, call.rois, call.levels, call.offsets)
    count = torch.export.Dim("count", min=2)
    shapes = ([None, None], {0: count}, {0: count}, {0: count})
    exported = torch.export.export(Pool(), arguments, dynamic_shapes=shapes).module()
    assert torch.equal(exported(*arguments), call.run() * 2)
    more = made_call(count=9)
    found = exported(call.features, more.rois, more.levels, more.offsets)
    assert torch.equal(found, replace(more, features=call.features).run() * 2)


@needs_kernel
def test_operator_and_its_gradients_compile_into_one_graph() -> None:
    call = made_call(count=6)
    pool = torch.compile(Pool(), backend="aot_eager", fullgraph=True)
    results = []
    for run in (Pool(), pool):
        maps = [f.detach().requires_grad_() for f in call.features]
        assert call.offsets is not None
        offsets = call.offsets.detach().requires_grad_()
        out = run(maps, call.rois, call.levels, offsets)
        out.square().sum().backward()
        results.append([out, *(leaf.grad for leaf in (*maps, offsets))])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("backend")
def test_autocast_keeps_the_dtype_of_the_maps() -> None:
    call = made_call(dtype=torch.bfloat16)
    assert call.offsets is not None
    with torch.autocast("cpu", torch.bfloat16):
        out = replace(call, offsets=call.offsets.bfloat16()).run()
    assert out.dtype == torch.bfloat16


@needs_kernel
@pytest.mark.slow
def test_maps_of_more_than_2_to_the_31_elements_are_addressed() -> None:
    height = 65_600
    feature = torch.zeros(1, 1, height, 32_768, dtype=torch.bfloat16)  # 4.3 GB
    feature[0, 0, -40:] = torch.arange(40, dtype=torch.bfloat16)[:, None]
    rois = torch.tensor([[0.0, 32_000, height - 30, 32_010, height - 10]])
    out = deform_roi_pool(
        [feature], rois, torch.zeros(1, dtype=torch.int64), strides=[1], output_size=2, samples=1
    )
    assert out[0, 0, :, 0].tolist() == [9.5, 19.5]
