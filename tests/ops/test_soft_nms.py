"""soft_nms against the official code's numbers, a per-class loop and its twin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from d2det_ops import soft_nms, soft_nms_reference
from tests.oracle.ops import case, half_open


def scene(count: int, classes: int, seed: int, *, spread: float = 150.0) -> tuple[Tensor, Tensor]:
    """Returns overlapping boxes and sparse class scores."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=generator) * spread
    size = torch.exp(torch.rand(count, 2, generator=generator) * 1.5 + 3)
    scores = torch.rand(count, classes, generator=generator)
    scores = scores * (torch.rand(count, classes, generator=generator) < 0.5)
    return torch.cat((centre - size / 2, centre + size / 2), 1), scores


def one_class_loop(
    boxes: Tensor, scores: Tensor, *, method: str, threshold: float, sigma: float, floor: float
) -> Tensor:
    """Returns rescored (D,) scores of one class, as the definition reads."""
    current, result = scores.clone(), torch.zeros_like(scores)
    while bool((current > floor).any()):
        pick = int(current.argmax())
        result[pick] = current[pick]
        current[pick] = 0
        low = torch.maximum(boxes[pick, :2], boxes[:, :2])
        sides = (torch.minimum(boxes[pick, 2:], boxes[:, 2:]) - low).clamp(min=0)
        shared = sides.prod(1)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        iou = shared / (area[pick] + area - shared)
        if method == "gaussian":
            current *= torch.exp(-iou.square() / sigma)
        else:
            current *= torch.where(iou > threshold, 1 - iou, 1)
        current[current <= floor] = 0
    return result


def test_scores_equal_the_official_linear_variant() -> None:
    dets, picked = case("nms_dets").float(), case("softnms_inds").long()
    rescored = soft_nms(half_open(dets[:, :4]), dets[:, 4:])[:, 0]
    expected = torch.zeros(len(dets)).index_copy(0, picked, case("softnms_dets")[:, 4].float())
    torch.testing.assert_close(rescored, expected, atol=1e-7, rtol=0)
    # The official list is in pick order, which is the order of the rescored scores.
    assert torch.equal(rescored.sort(descending=True).indices[: len(picked)], picked)


def test_class_wise_suppression_equals_the_official_detections() -> None:
    dets, cap = case("nms_dets").float(), 100
    labels = (torch.arange(len(dets)) * 7) % 5 + 1
    scores = dets[:, 4:] * torch.nn.functional.one_hot(labels, 6)
    flat = soft_nms(half_open(dets[:, :4]), scores)
    best = flat.flatten().sort(descending=True, stable=True).indices[:cap]
    found = torch.cat((dets[best // 6, :4], flat.flatten()[best, None]), 1)
    expected, classes = case("mc1_out").float(), case("mc1_lab").long()
    order = expected[:, 4].sort(descending=True, stable=True).indices
    torch.testing.assert_close(found, expected[order], atol=1e-6, rtol=0)
    offset = int(classes.min() == 0)  # labels start at 1 in the call, at 0 or 1 in the answer
    assert torch.equal(best % 6 - offset, classes[order])


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("seed", range(10))
def test_scores_equal_a_loop_over_classes(method: str, seed: int) -> None:
    boxes, scores = scene(60, 7, seed)
    found = soft_nms(boxes, scores, method=method, iou_threshold=0.4, sigma=0.3, min_score=0.05)
    rows = [
        one_class_loop(boxes, column, method=method, threshold=0.4, sigma=0.3, floor=0.05)
        for column in scores.unbind(1)
    ]
    torch.testing.assert_close(found, torch.stack(rows, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize(("count", "classes"), [(0, 3), (1, 1), (5, 0), (125, 80), (700, 3)])
def test_compiled_equals_the_twin(method: str, count: int, classes: int) -> None:
    boxes, scores = scene(count, classes, 11)
    torch.testing.assert_close(
        soft_nms(boxes, scores, method=method),
        soft_nms_reference(boxes, scores, method=method),
        atol=0 if method == "linear" else 1e-6,
        rtol=0,
    )


@pytest.mark.parametrize("threshold", [0.05, 0.25, 0.3, 1 / 3, 0.5])
def test_overlaps_equal_to_the_threshold_are_left_alone_as_in_float32(threshold: float) -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.randint(0, 12, (200, 2), generator=generator)
    boxes = torch.cat((low, low + torch.randint(0, 9, (200, 2), generator=generator)), 1).float()
    scores = torch.rand(200, 4, generator=generator)
    found = soft_nms(boxes, scores, iou_threshold=threshold)
    assert torch.equal(found, soft_nms_reference(boxes, scores, iou_threshold=threshold))


def test_many_boxes_on_one_spot_give_what_their_lists_would() -> None:
    """More pairs than are kept as lists: neighbours are then found anew at each pick."""
    boxes = torch.tensor([[0.0, 0.0, 100.0, 100.0]]).repeat(4200, 1)
    boxes += torch.rand(boxes.shape, generator=torch.Generator().manual_seed(0))
    scores = torch.linspace(0.2, 0.9, len(boxes))[:, None]
    found = soft_nms(boxes, scores, min_score=0.1)
    assert torch.equal(found, soft_nms_reference(boxes, scores, min_score=0.1))
    assert int((found > 0).sum()) == 1


def test_equal_scores_are_picked_by_index() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(3, 1)
    found = soft_nms(boxes, torch.full((3, 2), 0.5), method="gaussian", sigma=1.0)
    lowered = 0.5 * torch.exp(torch.tensor([0.0, -1.0, -2.0]))
    torch.testing.assert_close(found, lowered[:, None].expand(3, 2), atol=1e-6, rtol=0)


def test_boxes_without_area_or_number_neither_lower_nor_fall() -> None:
    odd = [[5.0, 5.0, 5.0, 9.0], [9.0, 9.0, 5.0, 5.0], [float("nan"), 0.0, 5.0, 5.0]]
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], *odd])
    scores = torch.tensor([[0.5], [0.9], [0.8], [0.7]])
    for method in ("linear", "gaussian"):
        assert torch.equal(soft_nms(boxes, scores, method=method), scores)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_agree_with_float32(dtype: torch.dtype) -> None:
    boxes, scores = scene(80, 4, 2)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    found = soft_nms(boxes, scores)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.float(), soft_nms(boxes.float(), scores.float()), atol=4e-3, rtol=0
    )


def test_strided_inputs_are_read_right_and_left_alone() -> None:
    boxes, scores = scene(50, 6, 4)
    wide = torch.cat((boxes, boxes), 1)[:, :4]
    turned = scores.t().contiguous().t()
    before = turned.clone()
    assert torch.equal(soft_nms(wide, turned), soft_nms(boxes, scores))
    assert torch.equal(turned, before)


@pytest.mark.parametrize("scores", [torch.rand(20, 1), torch.rand(1, 20)], ids=["C=1", "D=1"])
def test_single_row_or_column_is_not_written_to(scores: Tensor) -> None:
    boxes = scene(len(scores), 1, 0, spread=5.0)[0]
    before = scores.clone()
    soft_nms(boxes, scores)
    assert torch.equal(scores, before)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"boxes": torch.zeros(3, 5)}, "boxes"),
        ({"scores": torch.zeros(3)}, "scores"),
        ({"method": "cubic"}, "method"),
        ({"iou_threshold": 1.5}, "iou_threshold"),
        ({"sigma": 0.0}, "sigma"),
        ({"min_score": -1.0}, "min_score"),
    ],
)
def test_senseless_arguments_are_refused(change: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        soft_nms(**({"boxes": torch.zeros(3, 4), "scores": torch.zeros(3, 2)} | change))
