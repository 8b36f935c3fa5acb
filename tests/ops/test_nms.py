"""nms against torchvision, its twin and the official code's numbers."""

from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from d2det_ops import nms, nms_reference
from tests.oracle.ops import case, half_open


def scene(count: int, seed: int, spread: float = 300.0) -> tuple[Tensor, Tensor]:
    """Returns clustered boxes of mixed sizes and scores with many ties."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(max(count // 8, 1), 2, generator=generator) * spread
    centre = centres[torch.randint(0, len(centres), (count,), generator=generator)]
    centre = centre + torch.randn(count, 2, generator=generator) * 3
    size = torch.exp(torch.rand(count, 2, generator=generator) * 4)
    scores = torch.randint(0, 50, (count,), generator=generator) / 50
    return torch.cat((centre - size / 2, centre + size / 2), 1), scores


@pytest.mark.parametrize("threshold", [3, 5, 7])
def test_official_kept_boxes_are_the_same(threshold: int) -> None:
    dets = case("nms_dets").float()
    kept = nms(half_open(dets[:, :4]), dets[:, 4], threshold / 10)
    assert kept.sort().values.tolist() == case(f"nms_keep_{threshold}").tolist()


@pytest.mark.parametrize("seed", range(200))
def test_kept_indices_equal_torchvision(seed: int) -> None:
    count = [0, 1, 2, 17, 300, 1000][seed % 6]
    boxes, scores = scene(count, seed, spread=[30.0, 300.0, 3000.0][seed % 3])
    threshold = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0][seed % 7]
    assert torch.equal(nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))


@pytest.mark.parametrize("metric", ["iou", "ios"])
@pytest.mark.parametrize("max_keep", [None, 0, 5])
def test_compiled_equals_the_twin(metric: str, max_keep: int | None) -> None:
    boxes, scores = scene(400, 3)
    groups = torch.randint(0, 3, (400,), generator=torch.Generator().manual_seed(1))
    options = {"groups": groups, "metric": metric, "max_keep": max_keep}
    assert torch.equal(
        nms(boxes, scores, 0.4, **options), nms_reference(boxes, scores, 0.4, **options)
    )


@pytest.mark.parametrize("seed", range(10))
def test_groups_never_meet(seed: int) -> None:
    boxes, scores = scene(300, seed)
    groups = torch.randint(-2, 4, (300,), generator=torch.Generator().manual_seed(seed))
    expected = torchvision.ops.batched_nms(boxes, scores, groups + 2, 0.5)
    found = nms(boxes, scores, 0.5, groups=groups)
    # batched_nms may sort ties across groups its own way, so only the set is compared.
    assert found.sort().values.tolist() == expected.sort().values.tolist()
    assert scores[found].diff().le(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_equal_torchvision_on_the_widened_values(dtype: torch.dtype) -> None:
    boxes, scores = scene(300, 1)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    expected = torchvision.ops.nms(boxes.to(wide), scores.to(wide), 0.5)
    assert torch.equal(nms(boxes, scores, 0.5), expected)


def test_strided_inputs_equal_contiguous_ones() -> None:
    boxes, scores = scene(200, 2)
    strided = nms(torch.cat((boxes, boxes), 1)[:, :4], scores.repeat(2, 1).t()[:, 1], 0.5)
    assert torch.equal(strided, nms(boxes, scores, 0.5))


def test_sizes_and_positions_of_any_magnitude_equal_torchvision() -> None:
    generator = torch.Generator().manual_seed(0)
    side = 10 ** (torch.rand(600, 2, generator=generator, dtype=torch.float64) * 30 - 12)
    corner = torch.randn(600, 2, generator=generator, dtype=torch.float64) * side
    boxes = torch.cat((corner, corner + side), 1).float()
    scores = torch.rand(600, generator=generator)
    for threshold in (0.0, 0.01, 0.5):
        assert torch.equal(
            nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold)
        )


def test_boxes_without_area_or_number_are_kept_as_torchvision_keeps_them() -> None:
    nan, inf = float("nan"), float("inf")
    odd = [[5, 5, 5, 9], [9, 9, 1, 1], [nan, 0, 5, 5], [-inf, -inf, inf, inf], [0, 0, inf, 9]]
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], *odd])
    scores = torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.4])
    assert torch.equal(nms(boxes, scores, 0.5), torchvision.ops.nms(boxes, scores, 0.5))


def test_scores_that_are_no_numbers_are_ordered_as_torch_sorts_them() -> None:
    boxes = torch.arange(6.0)[:, None] * 20 + torch.tensor([0.0, 0.0, 9.0, 9.0])
    scores = torch.tensor([0.0, -0.0, float("inf"), float("nan"), -float("inf"), 0.5])
    expected = scores.sort(descending=True, stable=True).indices
    assert torch.equal(nms(boxes, scores, 0.5), expected)


@settings(max_examples=100, deadline=None)
@given(
    corners=st.lists(st.tuples(*[st.integers(0, 12)] * 4), max_size=30),
    ranks=st.lists(st.integers(0, 3), min_size=30, max_size=30),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_touching_and_tied_boxes_on_a_small_raster_equal_torchvision(
    corners: list[tuple[int, int, int, int]], ranks: list[int], threshold: float
) -> None:
    boxes = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor(ranks[: len(boxes)], dtype=torch.float32)
    assert torch.equal(nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"boxes": torch.zeros(3, 5)}, "boxes"),
        ({"scores": torch.zeros(4)}, "scores"),
        ({"iou_threshold": -0.1}, "iou_threshold"),
        ({"groups": torch.zeros(3)}, "groups"),
        ({"metric": "giou"}, "metric"),
        ({"max_keep": -2}, "max_keep"),
    ],
)
def test_senseless_arguments_are_refused(change: dict[str, object], named: str) -> None:
    arguments = {"boxes": torch.zeros(3, 4), "scores": torch.zeros(3), "iou_threshold": 0.5}
    with pytest.raises(ValueError, match=named):
        nms(**(arguments | change))
