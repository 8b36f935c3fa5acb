from __future__ import annotations

import pytest
import torch

from d2det.config import InferenceConfig
from d2det.models.selection import Candidates, select, soften
from tests.oracle.ops import case, half_open


def rows(found: Candidates) -> set[tuple[float, ...]]:
    """The found boxes with score and label, in no order."""
    parts = (found.boxes, found.scores[:, None], found.labels[:, None].float())
    return {tuple(row) for row in torch.cat(parts, 1).tolist()}


def stored(boxes: str, labels: str) -> set[tuple[float, ...]]:
    dets = case(boxes)
    parts = (half_open(dets[:, :4]), dets[:, 4:], case(labels)[:, None].float())
    return {tuple(row) for row in torch.cat(parts, 1).tolist()}


@pytest.mark.parametrize(
    ("threshold", "boxes", "labels"),
    [(0.4, "mc_out", "mc_lab"), (0.58, "mc_few_out", "mc_few_lab")],
    ids=["capped", "not capped"],
)
def test_class_wise_nms_equals_the_official_one(threshold, boxes, labels):
    found = select(
        half_open(case("nms_dets")[:, :4]),
        case("mc_scores")[:, 1:],
        torch.zeros(150, dtype=torch.int64),
        num_images=1,
        config=InferenceConfig(score_threshold=threshold, nms_iou=0.5, max_regressed=60),
    )
    assert rows(found) == stored(boxes, labels)


def test_soft_nms_equals_the_official_one():
    dets = case("nms_dets")
    found = soften(
        Candidates(
            half_open(dets[:, :4]),
            dets[:, 4],
            torch.arange(150) * 7 % 5,
            torch.zeros(150, dtype=torch.int64),
            torch.arange(150),
        ),
        num_images=1,
        num_classes=5,
        config=InferenceConfig(),
    )
    ours, theirs = sorted(rows(found)), sorted(stored("mc1_out", "mc1_lab"))
    assert len(ours) == len(theirs) == 100
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0, atol=1e-6)


def two_pictures() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    corner = torch.rand(60, 2) * 80
    boxes = torch.cat((corner, corner + 20 + torch.rand(60, 2) * 40), 1)
    return boxes, torch.rand(60, 3), torch.arange(60) // 40


def test_pictures_do_not_suppress_each_other():
    boxes, scores, image_index = two_pictures()
    config = InferenceConfig(score_threshold=0.2, max_regressed=15, max_detections=10)
    together = select(boxes, scores, image_index, num_images=2, config=config)
    soft = soften(together, num_images=2, num_classes=3, config=config)
    for i in range(2):
        mine = image_index == i
        alone = select(
            boxes[mine],
            scores[mine],
            torch.zeros(int(mine.sum()), dtype=torch.int64),
            num_images=1,
            config=config,
        )
        assert len(alone) <= 15
        assert torch.equal(together.boxes[together.image_index == i], alone.boxes)
        alone = soften(alone, num_images=1, num_classes=3, config=config)
        assert len(alone) <= 10
        assert torch.equal(soft.boxes[soft.image_index == i], alone.boxes)
        assert torch.equal(soft.scores[soft.image_index == i], alone.scores)


def test_one_box_may_be_of_several_classes():
    found = select(
        torch.tensor([[0.0, 0, 10, 10]]),
        torch.tensor([[0.5, 0.4, 0.01]]),
        torch.tensor([0]),
        num_images=1,
        config=InferenceConfig(),
    )
    assert found.labels.tolist() == [0, 1]


def test_nothing_above_the_threshold_leaves_nothing():
    boxes, scores, image_index = two_pictures()
    config = InferenceConfig(score_threshold=1.0)
    found = select(boxes, scores, image_index, num_images=2, config=config)
    assert len(found) == 0
    assert len(soften(found, num_images=2, num_classes=3, config=config)) == 0


def test_scores_that_are_not_numbers_are_never_chosen():
    boxes, scores, image_index = two_pictures()
    scores[::2] = float("nan")
    found = select(boxes, scores, image_index, num_images=2, config=InferenceConfig())
    assert found.scores.isfinite().all()
