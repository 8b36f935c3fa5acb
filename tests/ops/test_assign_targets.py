"""assign_targets against all pairs, and its twin in any memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from d2det_ops import assign_targets, assign_targets_reference
from tests.threads import threads


def raster(count: int, seed: int) -> Tensor:
    """Returns small integer boxes, so that equal overlaps are common."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 12, (count, 2), generator=generator)
    return torch.cat((low, low + torch.randint(0, 8, (count, 2), generator=generator)), 1).float()


def scene(count: int, seed: int, *, spread: float = 500.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    middle = torch.rand(count, 2, generator=generator) * spread
    size = torch.exp(torch.rand(count, 2, generator=generator) * 4 + 1)
    return torch.cat((middle - size / 2, middle + size / 2), 1)


def all_pairs(boxes: Tensor, gts: Tensor, floor: float, tie: float) -> tuple[list[int], list[int]]:
    """Returns best and tied ground truths from the full matrix of overlaps."""
    iou = box_iou(boxes, gts).nan_to_num(0)
    iou = torch.where(iou >= floor, iou, 0)
    best = [int(row.argmax()) if row.max() > 0 else -1 for row in iou]
    tied = [-1] * len(boxes)
    for g, column in enumerate(iou.unbind(1)):
        if column.max() >= max(tie, 1e-9):
            for i in (column == column.max()).nonzero().flatten().tolist():
                tied[i] = g
    return best, tied


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 20),
    st.integers(0, 10_000),
    st.sampled_from([(0.3, 0.3), (0.5, 0.5), (0.0, 0.0), (0.2, 0.6), (1.0, 1.0)]),
)
def test_best_and_tied_equal_the_full_matrix(
    num_boxes: int, num_gts: int, seed: int, limits: tuple[float, float]
) -> None:
    boxes, gts = raster(num_boxes, seed), raster(num_gts, seed + 1)
    floor, tie = limits
    found = assign_targets(boxes, gts, floor_iou=floor, tie_iou=tie)
    assert (found.best.tolist(), found.tied.tolist()) == all_pairs(boxes, gts, floor, tie)


@pytest.mark.parametrize(("num_boxes", "num_gts"), [(0, 5), (5, 0), (0, 0), (4000, 3), (900, 700)])
@pytest.mark.parametrize("max_bytes", [1, 200_000, 64 << 20])
def test_compiled_equals_the_twin_bit_for_bit_in_any_memory(
    num_boxes: int, num_gts: int, max_bytes: int
) -> None:
    boxes, gts = scene(num_boxes, 1), scene(num_gts, 2)
    if max_bytes == 1:
        boxes = boxes[:200]  # one row a block
    found = assign_targets(boxes, gts, floor_iou=0.3, tie_iou=0.4)
    twin = assign_targets_reference(boxes, gts, floor_iou=0.3, tie_iou=0.4, max_bytes=max_bytes)
    for ours, theirs in zip(found, twin, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("run", [assign_targets, assign_targets_reference])
def test_pictures_side_by_side_equal_each_alone_filled_up_with_boxes_without_area(run: Any) -> None:
    counts = [(300, 20), (0, 7), (120, 0), (40, 3)]
    alone = [(scene(a, i), scene(g, i + 9)) for i, (a, g) in enumerate(counts)]
    boxes, gts = torch.zeros(len(counts), 300, 4), torch.zeros(len(counts), 20, 4)
    for i, (own_boxes, own_gts) in enumerate(alone):
        boxes[i, : len(own_boxes)], gts[i, : len(own_gts)] = own_boxes, own_gts
    together = run(boxes, gts, floor_iou=0.2, tie_iou=0.3)
    for i, (own_boxes, own_gts) in enumerate(alone):
        found = run(own_boxes, own_gts, floor_iou=0.2, tie_iou=0.3)
        for batched, single in zip(together, found, strict=True):
            assert torch.equal(batched[i, : len(own_boxes)], single)
            assert (batched[i, len(own_boxes) :] <= 0).all()
    empty = run(boxes[:0], gts[:0], floor_iou=0.2, tie_iou=0.3)
    assert [tuple(x.shape) for x in empty] == [(0, 300)] * 3


def test_number_of_threads_changes_no_bit() -> None:
    boxes, gts = scene(20_000, 3), scene(300, 4)
    with threads(1):
        one = assign_targets(boxes, gts, floor_iou=0.3, tie_iou=0.3)
    with threads(4):
        four = assign_targets(boxes, gts, floor_iou=0.3, tie_iou=0.3)
    assert all(torch.equal(a, b) for a, b in zip(one, four, strict=True))


def test_strided_inputs_equal_contiguous_ones() -> None:
    boxes, gts = scene(300, 5), scene(20, 6)
    wide, turned = torch.cat((boxes, boxes), 1)[:, :4], gts.T.contiguous().T
    found = assign_targets(wide, turned, floor_iou=0.3, tie_iou=0.3)
    expected = assign_targets(boxes, gts, floor_iou=0.3, tie_iou=0.3)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "box",
    [
        [-1e30, -1e30, -2.0, -2.0],
        [4.0, 4.0, 4.0, 9.0],
        [9.0, 9.0, 1.0, 1.0],
        [float("nan"), 0.0, 5.0, 5.0],
        [0.0, 0.0, float("inf"), 5.0],
    ],
    ids=["far away", "no width", "inverted", "nan", "infinite"],
)
@pytest.mark.parametrize("run", [assign_targets, assign_targets_reference])
def test_odd_boxes_take_nothing_and_are_no_ones(box: list[float], run: Any) -> None:
    odd, plain = torch.tensor([box]), torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    for boxes, gts in ((odd, plain), (plain, odd)):
        found = run(boxes, gts, floor_iou=0.0, tie_iou=0.0)
        assert found.best.tolist() == found.tied.tolist() == [-1]
        assert found.iou.tolist() == [0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_equal_their_widened_values(dtype: torch.dtype) -> None:
    boxes, gts = scene(300, 5).to(dtype), scene(20, 6).to(dtype)
    found = assign_targets(boxes, gts, floor_iou=0.3, tie_iou=0.3)
    wide = assign_targets_reference(
        boxes.to(found.iou.dtype), gts.to(found.iou.dtype), floor_iou=0.3, tie_iou=0.3
    )
    assert all(torch.equal(a, b) for a, b in zip(found, wide, strict=True))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"boxes": torch.zeros(3, 5)}, "boxes"),
        ({"gt_boxes": torch.zeros(4)}, "gt_boxes"),
        ({"gt_boxes": torch.zeros(1, 2, 4)}, "gt_boxes"),
        ({"boxes": torch.zeros(2, 3, 4), "gt_boxes": torch.zeros(1, 2, 4)}, "pictures"),
        ({"floor_iou": -0.1}, "floor_iou"),
        ({"tie_iou": 1.5}, "tie_iou"),
    ],
)
def test_senseless_arguments_are_refused(change: dict[str, object], named: str) -> None:
    arguments = {
        "boxes": torch.zeros(3, 4),
        "gt_boxes": torch.zeros(2, 4),
        "floor_iou": 0.3,
        "tie_iou": 0.3,
    }
    with pytest.raises(ValueError, match=named):
        assign_targets(**(arguments | change))
