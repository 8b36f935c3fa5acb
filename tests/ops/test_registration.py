"""What PyTorch must know about ops that select: shapes, compilation, export, threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from d2det_ops import _library, assign_targets, masks_to_rle, nms, soft_nms
from tests.threads import threads

pytestmark = pytest.mark.skipif(_library.CPU.error is not None, reason=str(_library.CPU.error))


def boxes(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    corner = torch.rand(count, 2, generator=generator) * 60
    size = torch.rand(count, 2, generator=generator) * 20
    return torch.cat((corner, corner + size), 1).to(dtype)


def scores(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


SAMPLES = {
    "nms": [
        (boxes(30), scores(30), None, 0.3, False, -1),
        (boxes(30, torch.float64), scores(30, dtype=torch.float64), None, 0.3, True, 4),
        (boxes(30), scores(30), torch.arange(30) % 3, 0.3, False, -1),
        (boxes(60)[::2], scores(30, 2)[:, 1], None, 0.3, False, -1),
        (boxes(0), scores(0), None, 0.3, False, -1),
    ],
    "soft_nms": [
        (boxes(20), scores(20, 5), False, 0.5, 0.5, 1e-3),
        (boxes(20, torch.float64), scores(20, 5, dtype=torch.float64), True, 0.5, 0.5, 1e-3),
        (boxes(40)[::2], scores(5, 20).t(), True, 0.5, 0.5, 1e-3),
        (boxes(0), scores(0, 5), False, 0.5, 0.5, 1e-3),
    ],
    "assign_targets": [
        (boxes(50), boxes(7), 0.3, 0.4),
        (boxes(60, torch.float64)[::2], boxes(7, torch.float64), 0.3, 0.3),
        (boxes(0), boxes(7), 0.3, 0.3),
        (boxes(50), boxes(0), 0.3, 0.3),
        (boxes(60).view(3, 20, 4), boxes(21).view(3, 7, 4), 0.3, 0.3),
    ],
    "masks_to_rle": [
        (scores(6, 14, 14), boxes(6), 80, 90, 0, 0, 0.5, False),
        (scores(6, 14, 14).transpose(1, 2), boxes(12)[::2], 80, 90, 5, -7, 0.5, True),
        (scores(0, 14, 14), boxes(0), 80, 90, 0, 0, 0.5, False),
    ],
}
EACH_SAMPLE = [
    pytest.param(op, sample, id=f"{op}-{i}")
    for op, samples in SAMPLES.items()
    for i, sample in enumerate(samples)
]
FACES: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "nms": (lambda b, s: nms(b, s, 0.5), (boxes(40), scores(40))),
    "nms, groups": (
        lambda b, s, g: nms(b, s, 0.5, groups=g, metric="ios", max_keep=9),
        (boxes(40), scores(40), torch.arange(40) % 2),
    ),
    "assign_targets": (
        lambda b, g: torch.stack(assign_targets(b, g, floor_iou=0.3, tie_iou=0.3)[1:]),
        (boxes(40), boxes(41)[:40]),
    ),
    "soft_nms": (lambda b, s: soft_nms(b, s), (boxes(40), scores(40, 3))),
    "soft_nms, half": (
        lambda b, s: soft_nms(b, s, method="gaussian"),
        (boxes(40), scores(40, 3).half()),
    ),
}
EACH_FACE = pytest.mark.parametrize("name", FACES)


@pytest.mark.parametrize(("op", "sample"), EACH_SAMPLE)
def test_opcheck_finds_nothing(op: str, sample: tuple[object, ...]) -> None:
    torch.library.opcheck(_library.op(op), sample)


@EACH_FACE
def test_face_compiles_without_a_graph_break(name: str) -> None:
    face, arguments = FACES[name]
    compiled = torch.compile(face, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), face(*arguments))


@EACH_FACE
def test_face_exports_for_any_number_of_boxes(name: str) -> None:
    face, arguments = FACES[name]

    class Module(torch.nn.Module):
        def forward(self, *arguments: Tensor) -> Tensor:
            return face(*arguments)

    count = torch.export.Dim("count", min=2)
    shapes = (({0: count},) * len(arguments),)
    exported = torch.export.export(Module(), arguments, dynamic_shapes=shapes)
    fewer = tuple(argument[:25] for argument in arguments)
    assert torch.equal(exported.module()(*fewer), face(*fewer))


def test_mask_encoding_compiles_and_exports() -> None:
    op, sample = _library.op("masks_to_rle"), SAMPLES["masks_to_rle"][0]

    class Module(torch.nn.Module):
        def forward(self, masks: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
            found: tuple[Tensor, Tensor] = op(masks, boxes, *sample[2:])
            return found

    expected = op(*sample)
    compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager")(*sample[:2])
    exported = torch.export.export(Module(), sample[:2]).module()(*sample[:2])
    for found in (compiled, exported):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("op", SAMPLES)
def test_number_of_threads_changes_no_bit(op: str) -> None:
    large = {
        "nms": (boxes(3000), scores(3000), None, 0.5, False, -1),
        "soft_nms": (boxes(300), scores(300, 40), True, 0.5, 0.5, 1e-3),
        "assign_targets": (boxes(9000), boxes(50), 0.3, 0.3),
        "masks_to_rle": (scores(200, 28, 28), boxes(200), 80, 90, 0, 0, 0.5, False),
    }
    found = []
    for count in (1, 2, 5):
        with threads(count):
            out = _library.op(op)(*large[op])
        found.append([out] if isinstance(out, Tensor) else list(out))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    b, s, m = boxes(40), scores(40, 3), scores(40, 14, 14)
    plain = (nms(b, s[:, 0], 0.5), soft_nms(b, s), masks_to_rle(m, b, height=90, width=90))
    with torch.autocast("cpu", dtype):
        cast = (nms(b, s[:, 0], 0.5), soft_nms(b, s), masks_to_rle(m, b, height=90, width=90))
    assert torch.equal(plain[0], cast[0])
    assert torch.equal(plain[1], cast[1])
    assert plain[2] == cast[2]


def test_no_gradient_is_asked_of_selection() -> None:
    b, s = boxes(20).requires_grad_(), scores(20, 3).requires_grad_()
    assert not soft_nms(b, s).requires_grad
    assert not nms(b, s[:, 0], 0.5).requires_grad
    assert len(masks_to_rle(scores(20, 9, 9).requires_grad_(), b, height=90, width=90)) == 20
