"""The ops as the network calls them, on a GPU: rules of torch, derivatives, and the CPU's answers.

Their kernels case by case are in test_cuda_kernels.py; sizes here are those of real pictures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from d2det_ops import (
    _library,
    adaptive_pool,
    assign_targets,
    deform_roi_pool,
    masks_to_rle,
    nms,
    soft_nms,
)
from tests.ops.test_cuda_kernels import (
    FORMATS,
    STRIDES,
    Pool,
    gate_tensors,
    mask_scene,
    on_device,
    random,
    scene,
)
from tests.ops.test_registration import EACH_FACE, EACH_SAMPLE, FACES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or _library.CUDA.error is not None,
        reason=f"needs a GPU and the CUDA library ({_library.CUDA.error})",
    ),
]

on_gpu = partial(on_device, device="cuda")


@contextlib.contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Inside, torch raises where the host would wait for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def learning(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


# --- rules of torch ----------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "sample"), EACH_SAMPLE)
def test_opcheck_finds_nothing(op: str, sample: tuple[object, ...]) -> None:
    torch.library.opcheck(_library.op(op), on_gpu(sample))


@pytest.mark.parametrize(
    "pool", [Pool(), Pool(align=True), Pool(parts=None), Pool(count=0)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_opcheck_finds_nothing_in_roi_pooling(pool: Pool, dtype: torch.dtype) -> None:
    maps, rois, levels, offsets, *rest = on_gpu(pool.arguments())
    wide = torch.promote_types(dtype, torch.float32)
    maps = learning([m.to(dtype) for m in maps])
    offsets = None if offsets is None else offsets.to(wide).requires_grad_()
    arguments = (maps, rois.to(wide), levels, offsets, *rest)
    torch.library.opcheck(_library.op("deform_roi_pool"), arguments)


@FORMATS
@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_opcheck_finds_nothing_in_adaptive_pooling(
    memory: torch.memory_format, count: int, dtype: torch.dtype
) -> None:
    leaves = learning(on_gpu(list(gate_tensors((count, 8, 7, 6), dtype, memory))))
    torch.library.opcheck(_library.op("adaptive_pool"), (*leaves, 1e-5, 12.0, 3, 2, 1))


def roi_pooling(pool: Pool, *, dtype: torch.dtype = torch.float64) -> tuple[Callable, list[Tensor]]:
    """Returns deformable pooling of `pool`'s RoIs as a function of maps and offsets, and those."""
    maps, rois, levels, offsets = on_gpu(pool.tensors())
    # Away from half pixels, where no sample lies on a cell or at the border.
    rois = rois.double() + 0.0137
    leaves = learning([m.to(dtype) for m in maps] + ([] if offsets is None else [offsets.double()]))

    def pooled(*tensors: Tensor) -> Tensor:
        return deform_roi_pool(
            tensors[:3], rois, levels, strides=STRIDES, output_size=pool.bins, samples=pool.samples,
            offsets=None if offsets is None else tensors[3],
            sampling="align" if pool.align else "deform",
        )  # fmt: skip

    return pooled, leaves


@pytest.mark.parametrize(
    "pool", [Pool(channels=3, bins=3), Pool(channels=2, bins=2, align=True)], ids=str
)
def test_gradients_of_roi_pooling_are_derivatives(pool: Pool) -> None:
    pooled, leaves = roi_pooling(pool)
    with deterministic_algorithms(True):  # atomics add in any order, which gradcheck notices
        assert torch.autograd.gradcheck(pooled, leaves)


def test_gradients_of_adaptive_pooling_are_derivatives() -> None:
    leaves = learning(on_gpu(list(gate_tensors((2, 2, 5, 6), torch.float64, torch.channels_last))))
    assert torch.autograd.gradcheck(lambda *t: adaptive_pool(*t, gate_scale=3.0), leaves)


@EACH_FACE
def test_face_compiles_without_a_graph_break(name: str) -> None:
    face, arguments = FACES[name]
    arguments = on_gpu(arguments)
    compiled = torch.compile(face, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), face(*arguments))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_pooling_and_its_gradients_compile_into_one_graph(backend: str) -> None:
    pooled, leaves = roi_pooling(Pool(bins=7, parts=7), dtype=torch.float64)
    affine = learning([torch.randn(8, device="cuda", dtype=torch.float64) for _ in range(2)])

    def network(*tensors: Tensor) -> Tensor:
        features = pooled(*tensors[:4])
        return adaptive_pool(features * 2, features.cos(), *tensors[4:])

    results = []
    for run in (network, torch.compile(network, backend=backend, fullgraph=True)):
        inputs = learning([*leaves, *affine])
        out = run(*inputs)
        out.square().sum().backward()
        results.append([out, *(leaf.grad for leaf in inputs)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-10, rtol=1e-8)


def test_autocast_keeps_the_dtype_of_the_features() -> None:
    maps, rois, levels, offsets = on_gpu(Pool(dtype=torch.bfloat16, bins=6).tensors())
    with torch.autocast("cuda", torch.bfloat16):
        out = deform_roi_pool(
            maps,
            rois,
            levels,
            strides=STRIDES,
            output_size=6,
            samples=2,
            offsets=offsets.bfloat16(),
        )
        pooled = adaptive_pool(out, out, *torch.ones(2, 8, device="cuda"))
    assert out.dtype == pooled.dtype == torch.bfloat16


# --- nobody waits ------------------------------------------------------------------------------


@pytest.mark.parametrize("deterministic", [False, True])
def test_pooling_and_its_gradients_never_wait(deterministic: bool) -> None:
    pooled, leaves = roi_pooling(Pool(bins=7, parts=7), dtype=torch.float32)
    affine = learning([torch.ones(8, device="cuda"), torch.zeros(8, device="cuda")])
    with deterministic_algorithms(deterministic), waiting_is_an_error():
        features = pooled(*leaves)
        adaptive_pool(features, features, *affine).sum().backward()


def test_soft_nms_never_waits() -> None:
    boxes, scores = scene(125, 1)
    arguments = boxes.cuda(), scores[:, None].expand(-1, 80).cuda()
    with waiting_is_an_error():
        soft_nms(*arguments)


# --- the CPU's answers at real sizes -----------------------------------------------------------


@pytest.mark.parametrize("count", [1_000, 30_000])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("metric", ["iou", "ios"])
def test_nms_keeps_what_the_cpu_keeps(count: int, grouped: bool, metric: Any) -> None:
    boxes, scores = scene(count, count)
    groups = torch.randint(0, 15, (count,), generator=random(1)) if grouped else None
    wanted = nms(boxes, scores, 0.5, groups=groups, metric=metric)
    found = nms(*on_gpu((boxes, scores)), 0.5, groups=on_gpu(groups), metric=metric)
    assert torch.equal(found.cpu(), wanted)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("count", [125, 2_000])
def test_soft_nms_scores_as_the_cpu_does(method: Any, count: int) -> None:
    boxes, _ = scene(count, 3)
    scores = torch.rand(count, 20, generator=random(4)) ** 2
    found = soft_nms(*on_gpu((boxes, scores)), method=method)
    torch.testing.assert_close(
        found.cpu(), soft_nms(boxes, scores, method=method), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("convention", ["exact", "released"])
@pytest.mark.parametrize("size", [(800, 1333), (40_000, 40_000)], ids=str)
def test_masks_are_encoded_to_the_bytes_of_the_cpu(convention: Any, size: tuple[int, int]) -> None:
    masks, boxes = mask_scene("smooth", 28, 700, 1200)
    options: dict[str, Any] = {"height": size[0], "width": size[1], "convention": convention}
    assert masks_to_rle(*on_gpu((masks, boxes)), **options) == masks_to_rle(masks, boxes, **options)


@pytest.mark.parametrize("gts", [0, 7, 3_000])
def test_targets_are_assigned_as_on_the_cpu(gts: int) -> None:
    boxes, _ = scene(20_000, 5)
    objects, _ = scene(gts, 6)
    options = {"floor_iou": 0.3, "tie_iou": 0.3}
    found = assign_targets(*on_gpu((boxes, objects)), **options)
    for gpu, cpu in zip(found, assign_targets(boxes, objects, **options), strict=True):
        assert torch.equal(gpu.cpu(), cpu)


def test_maps_of_more_than_2_to_the_31_elements_are_addressed() -> None:
    height = 65_600
    feature = torch.zeros(1, 1, height, 32_768, dtype=torch.bfloat16, device="cuda")  # 4.3 GB
    feature[0, 0, -40:] = torch.arange(40, dtype=torch.bfloat16, device="cuda")[:, None]
    rois = torch.tensor([[0.0, 32_000, height - 30, 32_010, height - 10]], device="cuda")
    levels = torch.zeros(1, dtype=torch.int64, device="cuda")
    out = deform_roi_pool([feature], rois, levels, strides=[1], output_size=2, samples=1)
    assert out[0, 0, :, 0].tolist() == [9.5, 19.5]
