import pytest
import torch
import torch.nn.functional as F

from d2det.models.losses import (
    binary_term,
    class_term,
    dense_regression_term,
    iou_loss,
    mask_iou_term,
    no_terms,
    reduce_losses,
    smooth_l1_term,
)

IDENTITY = torch.clone


def test_iou_loss_is_bounded_and_lifts_poor_boxes() -> None:
    gts = torch.tensor([[0.0, 0, 10, 10]]).expand(4, 4)
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 1, 8], [50, 50, 60, 60]])
    expected = -torch.tensor([1.0, 0.5, 0.08 + 0.1, 1e-6 + 0.1]).log()
    torch.testing.assert_close(iou_loss(boxes, gts), expected)


def test_released_cell_loss_is_what_the_broadcast_of_the_released_code_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    gts = torch.tensor([[10.0, 10, 60, 50]]).expand(5, 4)
    boxes = gts[:, None, None, :] + torch.randn(5, 7, 7, 4, generator=generator) * 6
    overlap = torch.rand(5, 7, 7, generator=generator) < 0.4
    cells = iou_loss(boxes, gts[:, None, None, :]).flatten()
    weight = overlap.float().view(-1, 1)  # (M, 1) against (M,): the fault
    expected = 2 * (cells * weight).mean()
    term = dense_regression_term(boxes, gts, overlap, cell_loss="released", weight=2)
    torch.testing.assert_close(reduce_losses({"x": term}, IDENTITY)["x"], expected)


def test_per_cell_loss_is_the_mean_over_the_overlap() -> None:
    gts = torch.tensor([[10.0, 10, 60, 50]])
    boxes = gts[:, None, None, :].repeat(1, 7, 7, 1)
    boxes[:, 3, :, 2] = 35
    overlap = torch.zeros(1, 7, 7, dtype=torch.bool)
    overlap[:, 3:5] = True
    term = dense_regression_term(boxes, gts, overlap, cell_loss="per_cell", weight=2)
    expected = 2 * (-torch.tensor(0.5).log() + 0) / 2
    torch.testing.assert_close(reduce_losses({"x": term}, IDENTITY)["x"], expected)


@pytest.mark.parametrize("cell_loss", ["per_cell", "released"])
def test_no_cell_in_the_overlap_costs_nothing_but_keeps_the_graph(cell_loss: str) -> None:
    boxes = torch.rand(2, 7, 7, 4, requires_grad=True)
    gts = torch.tensor([[0.0, 0, 9, 9]]).expand(2, 4)
    none = torch.zeros(2, 7, 7, dtype=torch.bool)
    term = dense_regression_term(boxes, gts, none, cell_loss=cell_loss, weight=2)
    loss = reduce_losses({"x": term}, IDENTITY)["x"]
    loss.backward()
    assert loss == 0
    assert torch.equal(boxes.grad, torch.zeros_like(boxes))


def test_terms_of_one_rank_are_the_usual_means() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(9, 4, generator=generator), torch.arange(9) % 4
    deltas, targets = torch.randn(2, 6, 4, generator=generator)
    binary = torch.rand(5, 7, generator=generator) < 0.5
    ious, wanted = torch.rand(6), torch.tensor([0.0, 0.05, 0.1, 0.3, 0.8, 1.2])
    losses = reduce_losses(
        {
            "cls": class_term(logits, labels, weight=2),
            "box": smooth_l1_term(deltas, targets, beta=1 / 9, count=20),
            "mask": binary_term(logits[:5].repeat(1, 2)[:, :7], binary),
            "iou": mask_iou_term(ious, wanted, weight=0.5),
        },
        IDENTITY,
    )
    expected = {
        "cls": 2 * F.cross_entropy(logits, labels),
        "box": F.smooth_l1_loss(deltas, targets, beta=1 / 9, reduction="sum") / 20,
        "mask": F.binary_cross_entropy_with_logits(logits[:5].repeat(1, 2)[:, :7], binary.float()),
        "iou": 0.5 * ((ious - wanted)[3:5] ** 2).sum() / 6,
    }
    torch.testing.assert_close(losses, expected)


def test_one_collective_serves_all_terms() -> None:
    calls = []

    def all_reduce(counts: torch.Tensor) -> torch.Tensor:
        calls.append(counts.shape)
        return counts * 2

    logits = torch.randn(4, 3)
    term = class_term(logits, torch.zeros(4, dtype=torch.int64), weight=1)
    losses = reduce_losses({"a": term, "b": term}, all_reduce)
    assert calls == [(2, 2)]
    torch.testing.assert_close(losses["a"], term.total / 8)


def test_a_rank_with_nothing_reaches_every_parameter_with_zeros() -> None:
    layer = torch.nn.Linear(3, 2)
    layer.bias.data.fill_(torch.nan)  # zero times NaN must not come into it
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    losses = reduce_losses(no_terms(("a", "b"), [*layer.parameters(), frozen]), IDENTITY)
    sum(losses.values()).backward()
    assert losses == {"a": 0, "b": 0}
    assert all((p.grad == 0).all() for p in layer.parameters())
    assert frozen.grad is None
