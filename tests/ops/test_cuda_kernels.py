"""The CUDA kernels against the twins: on a GPU where there is one, and emulated everywhere.

Emulated (see emulator.py) they run on the processor, threads and blocks in several orders, so that
a result that hangs on who comes first shows. The same cases run on the device itself under `gpu`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from d2det_ops import (
    _library,
    adaptive_pool_reference,
    assign_targets_reference,
    deform_roi_pool_reference,
    masks_to_rle_reference,
    nms_reference,
    soft_nms_reference,
)
from tests.ops import emulator

STRIDES = (4, 8, 16)
ORDERS = ("0", "1", "7")  # of the emulator: threads ascending, descending, shuffled


@dataclass(frozen=True)
class Backend:
    """Raw operators and the device their tensors live on."""

    ops: Any
    device: str
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, op: str, *arguments: Any) -> Any:
        """Runs an operator on the device and returns its results on the CPU."""
        return on_device(getattr(self.ops, op)(*on_device(arguments, self.device)), "cpu")

    def in_every_order(self, run: Callable[[], Any]) -> list[Any]:
        """Returns what `run` gives, again and again; emulated, in several orders of threads."""
        results = []
        for order in ORDERS:
            self.monkeypatch.setenv("D2DET_EMULATOR_ORDER", order)
            results.append(run())
        return results


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    if request.param == "emulated":
        return Backend(emulator.load(), "cpu", monkeypatch)
    if not torch.cuda.is_available() or _library.CUDA.error is not None:
        pytest.skip(f"needs a GPU and the CUDA library ({_library.CUDA.error})")
    return Backend(torch.ops.d2det_ops, "cuda", monkeypatch)


@pytest.fixture(autouse=True)
def _fresh_tensors_hold_nan() -> Iterator[None]:
    """Whatever reads memory before it is written gives wrong results here, not lucky ones."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def on_device(value: Any, device: str) -> Any:
    """Returns `value` with its tensors, however nested, on `device`."""
    if isinstance(value, Tensor):
        # With its storage, so that strides and alignment go with it.
        memory = value.new_empty(0).set_(value.untyped_storage()).to(device)
        return memory.as_strided(value.shape, value.stride(), value.storage_offset())
    if isinstance(value, list | tuple):
        return type(value)(on_device(item, device) for item in value)
    return value


def same_bits(results: list[Any]) -> bool:
    """Returns whether results (tensors, or lists of them) are all equal to the first."""
    if isinstance(results[0], Tensor):
        return all(torch.equal(results[0], other) for other in results[1:])
    return all(same_bits(list(items)) for items in zip(*results, strict=True))


def channels_last_at(shift: int, values: Tensor) -> Tensor:
    """Returns `values` channels-last in memory, `shift` elements behind an aligned address."""
    flat = values.permute(0, 2, 3, 1).flatten()
    memory = torch.cat((flat.new_zeros(shift), flat))[shift:]
    n, c, h, w = values.shape
    return memory.view(n, h, w, c).permute(0, 3, 1, 2)


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- deform_roi_pool ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """One call of deform_roi_pool, drawn from a seed."""

    channels: int = 8
    bins: int = 6
    parts: int | None = 3
    samples: int = 2
    align: bool = False
    dtype: torch.dtype = torch.float32
    channels_last: bool = True
    count: int = 7
    shift: int = 0  # elements by which maps miss the start of their memory

    def tensors(self) -> tuple[list[Tensor], Tensor, Tensor, Tensor | None]:
        """Returns maps, rois (some outside, one inverted, one huge), levels and offsets."""
        g = random(self.channels + self.bins)
        maps = [self._map(h, w, g) for h, w in ((20, 27), (10, 14), (5, 7))]
        corner = torch.rand(self.count, 2, generator=g) * 90 - 10
        side = torch.rand(self.count, 2, generator=g) * 60
        image = torch.randint(0, 2, (self.count, 1), generator=g)
        rois = torch.cat((image, corner, corner + side), 1)
        if self.count > 2:
            rois[1, 1:] = torch.tensor([50.5, 40.5, 30.0, 20.0])
            rois[2, 1:] = torch.tensor([-60.0, -60.0, 200.0, 200.0])
        levels = torch.randint(0, 3, (self.count,), generator=g)
        if self.parts is None or self.align:
            return maps, rois, levels, None
        return maps, rois, levels, torch.randn(self.count, 2, self.parts, self.parts, generator=g)

    def _map(self, height: int, width: int, g: torch.Generator) -> Tensor:
        values = torch.randn(2, self.channels, height, width, generator=g).to(self.dtype)
        return channels_last_at(self.shift, values) if self.channels_last else values

    def arguments(self) -> tuple[Any, ...]:
        """Returns the operator's arguments."""
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        maps, rois, levels, offsets = self.tensors()
        offsets = None if offsets is None else offsets.to(wide)
        scales = [1 / stride for stride in STRIDES]
        return (
            maps,
            rois.to(wide),
            levels,
            offsets,
            scales,
            self.bins,
            self.samples,
            0.1,
            self.align,
        )

    def expected(self, grad: Tensor | None = None) -> Tensor | tuple[list[Tensor], Tensor | None]:
        """Returns the twin's output in float64, or with `grad` its gradients."""
        maps, rois, levels, offsets = self.tensors()
        maps = [m.double().clone().requires_grad_() for m in maps]
        offsets = None if offsets is None else offsets.double().requires_grad_()
        pooled = deform_roi_pool_reference(
            maps, rois.double(), levels, strides=STRIDES, output_size=self.bins,
            samples=self.samples, offsets=offsets, sampling="align" if self.align else "deform",
        )  # fmt: skip
        if grad is None:
            return pooled.detach()
        pooled.backward(grad.double())
        zeros = [torch.zeros_like(m) if m.grad is None else m.grad for m in maps]
        return zeros, None if offsets is None else offsets.grad

    @property
    def tolerance(self) -> float:
        """Of float32 sums of tens of terms, or of a rounding to half precision."""
        return {torch.bfloat16: 2e-2, torch.float16: 3e-3}.get(self.dtype, 2e-5)


POOLS = {
    "packs": Pool(),
    "two warps of channels": Pool(channels=136, count=3),
    "odd channels": Pool(channels=5),
    "maps off the 16-byte grid": Pool(shift=1),
    "channels first": Pool(channels_last=False),
    "no offsets": Pool(parts=None, bins=3),
    "one sample, a part a bin": Pool(parts=6, samples=1),
    "many samples": Pool(samples=5, bins=2, parts=1, count=3),
    "align": Pool(align=True),
    "bfloat16": Pool(dtype=torch.bfloat16),
    "float16, odd": Pool(dtype=torch.float16, channels=3),
    "float64": Pool(dtype=torch.float64),
    "no rois": Pool(count=0),
}
EACH_POOL = pytest.mark.parametrize("pool", [pytest.param(p, id=name) for name, p in POOLS.items()])


def roi_grad(pool: Pool) -> Tensor:
    """Returns a gradient of the pooled features."""
    shape = (pool.count, pool.channels, pool.bins, pool.bins)
    return torch.randn(shape, generator=random(1)).to(pool.dtype)


@EACH_POOL
def test_pooled_features_equal_the_twin(backend: Backend, pool: Pool) -> None:
    found = backend("deform_roi_pool", *pool.arguments())
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), pool.expected(), atol=pool.tolerance, rtol=0)


@EACH_POOL
@pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "deterministic"])
def test_pool_gradients_equal_the_twin(backend: Backend, pool: Pool, deterministic: bool) -> None:
    grad = roi_grad(pool)
    maps, moved = backend("deform_roi_pool_backward", grad, *pool.arguments(), deterministic)
    expected, expected_moved = pool.expected(grad)
    for found, wanted in zip(maps, expected, strict=True):
        assert found.dtype == pool.dtype
        torch.testing.assert_close(found.double(), wanted, atol=pool.tolerance, rtol=pool.tolerance)
    if expected_moved is None:
        assert moved.numel() == 0
    else:
        torch.testing.assert_close(moved.double(), expected_moved, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pool", [Pool(), Pool(dtype=torch.bfloat16), Pool(shift=2)], ids=str)
@pytest.mark.parametrize("grad_shift", [0, 1])
def test_adding_four_at_a_time_gives_the_same(
    backend: Backend, pool: Pool, grad_shift: int
) -> None:
    """From compute capability 9.0 on four sums are added at once, where memory allows it."""
    grad = channels_last_at(grad_shift, roi_grad(pool))
    backend.monkeypatch.setenv("D2DET_EMULATOR_MAJOR", "9")
    maps, moved = backend("deform_roi_pool_backward", grad, *pool.arguments(), False)
    expected, expected_moved = pool.expected(grad)
    close = {"atol": pool.tolerance, "rtol": pool.tolerance}
    for found, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, **close)
    torch.testing.assert_close(moved.double(), expected_moved, atol=1e-4, rtol=1e-4)


def test_deterministic_gradients_are_the_same_bits_again(backend: Backend) -> None:
    pool = Pool(count=20)
    call = (roi_grad(pool), *pool.arguments(), True)
    assert same_bits(backend.in_every_order(lambda: backend("deform_roi_pool_backward", *call)))


def test_offset_gradient_is_the_same_bits_again_even_with_atomics(backend: Backend) -> None:
    pool = Pool(count=20)
    call = (roi_grad(pool), *pool.arguments(), False)
    moved = backend.in_every_order(lambda: backend("deform_roi_pool_backward", *call)[1])
    assert same_bits(moved)


@pytest.mark.parametrize("deterministic", [False, True])
def test_rois_of_no_picture_or_level_or_place_give_zeros(
    backend: Backend, deterministic: bool
) -> None:
    """A kernel cannot raise without waiting for it; it must not read wild memory either."""
    pool = Pool(count=6)
    arguments = list(pool.arguments())
    rois, levels = arguments[1].clone(), arguments[2].clone()
    rois[0, 0], rois[1, 0], rois[2, 0] = 2, -1, float("nan")
    rois[5, 1:] = float("nan")
    levels[3], levels[4] = 3, -1
    arguments[1:3] = rois, levels
    assert not backend("deform_roi_pool", *arguments).any()
    maps, moved = backend("deform_roi_pool_backward", roi_grad(pool), *arguments, deterministic)
    assert not any(found.any() for found in maps)
    assert not moved[:5].any()  # the last has a NaN for a size, and so for a derivative


def test_empty_maps_give_zeros(backend: Backend) -> None:
    arguments = list(Pool().arguments())
    arguments[0] = [m[:, :, :0] for m in arguments[0]]
    assert not backend("deform_roi_pool", *arguments).any()


# --- adaptive_pool -----------------------------------------------------------------------------

GATES = {
    "14 to 7": ((2, 40, 14, 14), (3, 2, 1)),
    "few channels": ((3, 3, 7, 9), (3, 2, 1)),
    "even windows": ((1, 33, 8, 6), (2, 2, 0)),
    "wide windows": ((1, 8, 9, 9), (5, 3, 2)),
    "spilled": ((2, 5, 24, 20), (3, 2, 1)),
    "no rois": ((0, 8, 14, 14), (3, 2, 1)),
}
EACH_GATE = pytest.mark.parametrize(
    ("shape", "window"), [pytest.param(*case, id=name) for name, case in GATES.items()]
)
FORMATS = pytest.mark.parametrize(
    "memory", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"]
)


def gate_tensors(shape: tuple[int, ...], dtype: torch.dtype, memory: Any) -> tuple[Tensor, ...]:
    g = random(shape[1])
    x, logits = (torch.randn(shape, generator=g).to(dtype).to(memory_format=memory) for _ in "xl")
    wide = torch.promote_types(dtype, torch.float32)
    affine = torch.randn(2, shape[1], generator=g).to(wide)
    return x, logits, affine[0] + 1, affine[1]


@EACH_GATE
@FORMATS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_adaptive_pool_and_its_gradients_equal_the_twin(
    backend: Backend,
    shape: tuple[int, ...],
    window: tuple[int, int, int],
    memory: Any,
    dtype: torch.dtype,
) -> None:
    tensors = gate_tensors(shape, dtype, memory)
    leaves = [t.double().clone().requires_grad_() for t in tensors]
    kernel, stride, padding = window
    wanted = adaptive_pool_reference(*leaves, kernel_size=kernel, stride=stride, padding=padding)
    found, mean, rstd = backend("adaptive_pool", *tensors, 1e-5, 12.0, *window)
    half = {torch.bfloat16: 3e-2, torch.float16: 4e-3}
    close = {"atol": half.get(dtype, 2e-5), "rtol": half.get(dtype, 2e-5)}
    torch.testing.assert_close(found.double(), wanted, **close)
    assert found.is_contiguous(memory_format=memory)

    grad = torch.randn(wanted.shape, generator=random(2)).to(dtype)
    wanted.backward(grad.double())
    grads = backend("adaptive_pool_backward", grad, *tensors, mean, rstd, 12.0, *window)
    for given, got, leaf in zip(tensors, grads, leaves, strict=True):
        assert got.dtype == given.dtype
        torch.testing.assert_close(got.double(), leaf.grad, **close)


def test_adaptive_pool_is_the_same_bits_again(backend: Backend) -> None:
    tensors = gate_tensors((2, 40, 14, 14), torch.float32, torch.channels_last)

    def run() -> list[Tensor]:
        out, mean, rstd = backend("adaptive_pool", *tensors, 1e-5, 12.0, 3, 2, 1)
        grads = backend("adaptive_pool_backward", out, *tensors, mean, rstd, 12.0, 3, 2, 1)
        return [out, mean, rstd, *grads]

    assert same_bits(backend.in_every_order(run))


# --- nms and soft_nms --------------------------------------------------------------------------


def scene(count: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Returns crowded boxes, some without area, and scores with ties."""
    g = random(seed)
    corner = torch.rand(count, 2, generator=g) * 20 * count**0.5
    side = torch.rand(count, 2, generator=g) * 60 - 2
    scores = torch.randint(0, 200, (count,), generator=g) / 200
    return torch.cat((corner, corner + side), 1).to(dtype), scores.to(dtype)


@pytest.mark.parametrize("count", [0, 1, 40, 512, 513, 1200])
@pytest.mark.parametrize("metric", ["iou", "ios"])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize("max_keep", [None, 0, 9])
def test_kept_boxes_equal_the_twins(
    backend: Backend, count: int, metric: str, threshold: float, max_keep: int | None
) -> None:
    dtype = torch.float64 if max_keep == 9 else torch.float32
    boxes, scores = scene(count, 3, dtype)
    groups = torch.randint(-1, 2, (count,), generator=random(0)) if threshold else None
    options = {"groups": groups, "metric": metric, "max_keep": max_keep}
    limit = -1 if max_keep is None else max_keep
    found = backend("nms", boxes, scores, groups, threshold, metric == "ios", limit)
    assert torch.equal(found, nms_reference(boxes, scores, threshold, **options))


@pytest.mark.parametrize("count", [1, 300, 2500])
@pytest.mark.parametrize("num_groups", [1, 7, 900])
@pytest.mark.parametrize("max_keep", [None, 20])
def test_groups_do_not_touch_each_other(
    backend: Backend, count: int, num_groups: int, max_keep: int | None
) -> None:
    boxes, scores = scene(count, 8, torch.float32 if num_groups == 7 else torch.float64)
    boxes[3::23], scores[5::19] = float("nan"), float("nan")
    groups = torch.randint(-3, num_groups - 3, (count,), generator=random(1))
    limit = -1 if max_keep is None else max_keep
    found = backend("nms", boxes, scores, groups, 0.4, False, limit)
    twin = nms_reference(boxes, scores, 0.4, groups=groups, max_keep=max_keep)
    assert torch.equal(found, twin)


def test_groups_of_which_one_is_too_large_for_a_block_do_not_touch_each_other(
    backend: Backend,
) -> None:
    boxes, scores = scene(300, 8)
    groups = torch.randint(0, 7, (300,), generator=random(1))
    row = torch.arange((8 << 10) + 1)[:, None] * 10
    boxes = torch.cat((boxes, row + torch.tensor([1e5, 0, 1e5 + 9, 9])))
    scores = torch.cat((scores, torch.zeros(len(row))))
    groups = torch.cat((groups, torch.full((len(row),), 99)))
    found = backend("nms", boxes, scores, groups, 0.4, False, 280)
    assert torch.equal(found, nms_reference(boxes, scores, 0.4, groups=groups, max_keep=280))


def test_groups_are_the_same_in_every_order(backend: Backend) -> None:
    boxes, scores = scene(900, 2)
    groups = torch.randint(0, 5, (900,), generator=random(2))
    kept = backend.in_every_order(lambda: backend("nms", boxes, scores, groups, 0.3, False, -1))
    assert same_bits(kept)


def test_nms_takes_strange_scores_and_boxes_as_the_twin_does(backend: Backend) -> None:
    boxes, scores = scene(200, 1)
    scores[::17], scores[3::29], boxes[5::31] = float("nan"), float("inf"), float("nan")
    boxes[7::41, 2:] = float("inf")
    found = backend("nms", boxes[::2], scores[::2], None, 0.3, False, -1)
    assert torch.equal(found, nms_reference(boxes[::2], scores[::2], 0.3))


def test_nms_is_the_same_in_every_order(backend: Backend) -> None:
    boxes, scores = scene(700, 2)
    kept = backend.in_every_order(lambda: backend("nms", boxes, scores, None, 0.3, False, -1))
    assert same_bits(kept)


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (30, 0), (40, 5), (300, 1)])
@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softened_scores_equal_the_twins(
    backend: Backend, shape: tuple[int, int], method: str, dtype: torch.dtype
) -> None:
    boxes, _ = scene(shape[0], 4, dtype)
    scores = (torch.rand(shape, generator=random(5)) ** 3 * 50).round().to(dtype) / 50
    found = backend("soft_nms", boxes, scores, method == "gaussian", 0.5, 0.5, 1e-3)
    wanted = scores if 0 in shape else soft_nms_reference(boxes, scores, method=method)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_soft_nms_is_the_same_in_every_order(backend: Backend) -> None:
    boxes, _ = scene(90, 6)
    scores = torch.randint(0, 20, (90, 3), generator=random(7)) / 20
    call = (boxes, scores, True, 0.5, 0.5, 1e-3)
    assert same_bits(backend.in_every_order(lambda: backend("soft_nms", *call)))


# --- assign_targets ----------------------------------------------------------------------------


@pytest.mark.parametrize("pictures", [None, 0, 1, 3])
@pytest.mark.parametrize(("num_boxes", "num_gts"), [(0, 4), (40, 0), (1, 1), (700, 9), (300, 600)])
@pytest.mark.parametrize(("floor", "tie"), [(0.0, 0.0), (0.3, 0.3), (0.2, 0.6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_assignments_equal_the_twins(
    backend: Backend,
    pictures: int | None,
    num_boxes: int,
    num_gts: int,
    floor: float,
    tie: float,
    dtype: torch.dtype,
) -> None:
    boxes, gts = assignment_scene(pictures, num_boxes, num_gts, dtype)
    found = backend("assign_targets", boxes, gts, floor, tie)
    twin = assign_targets_reference(boxes, gts, floor_iou=floor, tie_iou=tie)
    for ours, theirs in zip(found, twin, strict=True):
        assert torch.equal(ours, theirs)


def assignment_scene(
    pictures: int | None, num_boxes: int, num_gts: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Returns boxes and ground truths: on a raster, so that many tie, some odd."""
    shape = () if pictures is None else (pictures,)
    g = random(num_boxes + num_gts)
    sets = []
    for count in (num_boxes, num_gts):
        corner = torch.randint(0, 90, (*shape, count, 2), generator=g)
        side = torch.randint(-1, 30, (*shape, count, 2), generator=g)
        boxes = torch.cat((corner, corner + side), -1).to(dtype)
        boxes[..., 5::31, 0] = float("nan")
        boxes[..., 7::41, 2:] = float("inf")
        sets.append(boxes)
    return sets[0], sets[1]


def test_assignments_are_the_same_in_every_order(backend: Backend) -> None:
    boxes, gts = assignment_scene(2, 400, 300, torch.float32)
    call = (boxes[:, ::2], gts, 0.1, 0.1)
    assert same_bits(backend.in_every_order(lambda: backend("assign_targets", *call)))


# --- masks_to_rle ------------------------------------------------------------------------------


def mask_scene(kind: str, cells: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Returns the masks and boxes of some objects, within the scene and past each of its sides."""
    g = random(cells + height)
    corner = torch.rand(6, 2, generator=g) * torch.tensor([width, height]) * 1.2 - 5
    boxes = torch.cat((corner, corner + torch.rand(6, 2, generator=g) * 60), 1)
    boxes[0] = torch.tensor([-10.0, -10.0, width + 10.0, height + 10.0])
    boxes[1, 2:] = boxes[1, :2] - 3  # inverted
    boxes[2, 0] = float("inf")
    noise = torch.rand(6, cells, cells, generator=g)
    smooth = torch.nn.functional.avg_pool2d(noise, 5, 1, 2)
    return {"noise": noise, "smooth": smooth, "full": torch.ones_like(noise)}[kind], boxes


@pytest.mark.parametrize("kind", ["noise", "smooth", "full"])
@pytest.mark.parametrize("cells", [1, 7, 28, 40])
@pytest.mark.parametrize("size", [(60, 80), (33, 20), (64, 64), (1, 50)], ids=str)
@pytest.mark.parametrize("convention", ["exact", "released"])
def test_encoded_masks_are_the_twins_bytes(
    backend: Backend, kind: str, cells: int, size: tuple[int, int], convention: str
) -> None:
    masks, boxes = mask_scene(kind, cells, *size)
    height, width = size
    origin = (3, -4) if cells == 7 else (0, 0)
    call = (masks, boxes, height, width, *origin, 0.5, convention == "released")
    text, offsets = backend("masks_to_rle", *call)
    ends = offsets.tolist()
    found = [bytes(text[a:b].tolist()) for a, b in itertools.pairwise(ends)]
    wanted = masks_to_rle_reference(
        masks, boxes, height=height, width=width, origin=origin, convention=convention
    )
    assert found == [rle["counts"] for rle in wanted]


def test_no_masks_give_no_bytes(backend: Backend) -> None:
    text, offsets = backend(
        "masks_to_rle", torch.zeros(0, 28, 28), torch.zeros(0, 4), 60, 80, 0, 0, 0.5, False
    )
    assert text.numel() == 0
    assert offsets.tolist() == [0]


def test_masks_are_the_same_bytes_in_every_order(backend: Backend) -> None:
    masks, boxes = mask_scene("noise", 28, 60, 80)
    call = (masks, boxes, 60, 80, 0, 0, 0.5, False)
    assert same_bits(backend.in_every_order(lambda: backend("masks_to_rle", *call)))
