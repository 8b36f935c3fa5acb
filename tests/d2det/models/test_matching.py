import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from d2det.boxes import base_anchors, pairwise_iou
from d2det.models.matching import IGNORED, NEGATIVE, match


def oracle(boxes: Tensor, gts: Tensor, positive: float, negative: float, best: float) -> list[int]:
    """The rule, one box and one ground truth at a time."""
    iou = pairwise_iou(boxes, gts)
    assignment = []
    for row in iou:
        value, index = row.max(0)
        found = NEGATIVE if value < negative else IGNORED
        assignment.append(int(index) if value >= positive else found)
    for j in range(len(gts)):
        if iou[:, j].max() >= best:
            for i in (iou[:, j] == iou[:, j].max()).nonzero().flatten().tolist():
                assignment[i] = j
    return assignment


def boxes_on_a_grid(count: int, seed: int) -> Tensor:
    """Small integer boxes, so that equal IoUs are common."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 12, (count, 2), generator=generator)
    return torch.cat((low, low + torch.randint(1, 8, (count, 2), generator=generator)), 1).float()


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 20),
    st.integers(0, 10_000),
    st.sampled_from([(0.7, 0.3, 0.3), (0.5, 0.5, 0.5), (0.6, 0.4, 0.0)]),
    st.sampled_from([1, 3000, 64 << 20]),
)
def test_equals_the_rule_box_by_box_in_any_memory(
    num_boxes: int, num_gts: int, seed: int, iou: tuple[float, float, float], max_bytes: int
) -> None:
    boxes, gts = boxes_on_a_grid(num_boxes, seed), boxes_on_a_grid(num_gts, seed + 1)
    positive, negative, best = iou
    best = max(best, 0.01)  # boxes that do not touch never belong together
    got = match(
        boxes,
        gts,
        positive_iou=positive,
        negative_iou=negative,
        best_iou=best,
        max_bytes=max_bytes,
    )
    assert got.tolist() == oracle(boxes, gts, positive, negative, best)


def test_all_boxes_tied_with_the_best_iou_become_positive() -> None:
    gt = torch.tensor([[0.0, 0, 10, 10]])
    boxes = torch.tensor([[-4.0, 0, 6, 10], [4, 0, 14, 10], [0, -4, 10, 6], [5, 0, 15, 10]])
    got = match(boxes, gt, positive_iou=0.7, negative_iou=0.3, best_iou=0.3)
    assert got.tolist() == [0, 0, 0, IGNORED]


def test_a_best_iou_below_the_limit_gives_no_positive() -> None:
    gt = torch.tensor([[0.0, 0, 2, 2]])
    got = match(
        torch.tensor([[0.0, 0, 10, 10]]), gt, positive_iou=0.7, negative_iou=0.3, best_iou=0.3
    )
    assert got.tolist() == [NEGATIVE]


@pytest.mark.parametrize(("num_boxes", "num_gts"), [(0, 3), (5, 0), (0, 0)])
def test_nothing_to_match_is_background(num_boxes: int, num_gts: int) -> None:
    got = match(
        torch.ones(num_boxes, 4),
        torch.ones(num_gts, 4),
        positive_iou=0.5,
        negative_iou=0.5,
        best_iou=0.5,
    )
    assert got.tolist() == [NEGATIVE] * num_boxes


def test_blocks_of_anchors_see_every_ground_truth_they_touch() -> None:
    """The map of a real level, cut into hundreds of blocks, against one block."""
    shift = torch.stack(torch.meshgrid(*[torch.arange(40) * 4] * 2, indexing="xy"), -1)
    anchors = (shift.reshape(-1, 1, 2).repeat(1, 1, 2) + base_anchors(4, 8, (0.5, 1, 2))).flatten(
        0, 1
    )
    generator = torch.Generator().manual_seed(3)
    low = torch.rand(300, 2, generator=generator) * 160
    gts = torch.cat((low, low + torch.rand(300, 2, generator=generator) * 50 + 1), 1)
    limits = {"positive_iou": 0.7, "negative_iou": 0.3, "best_iou": 0.3}
    assert torch.equal(
        match(anchors, gts, **limits), match(anchors, gts, **limits, max_bytes=1 << 18)
    )
