from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from d2det.boxes import clip, decode_deltas
from d2det.config import RpnConfig
from d2det.models.anchors import Anchors
from d2det.models.rpn import RegionProposalNetwork, RpnOutput, _best_per_level
from d2det.models.selection import best_per_image
from tests.oracle.ops import case, drawn, half_open

STRIDES = (4, 8, 16, 32, 64)
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def network(**options) -> RegionProposalNetwork:
    torch.manual_seed(0)
    config = RpnConfig(train_top_n=60, test_pre_nms_top_n=40, test_top_n=30, **options)
    rpn = RegionProposalNetwork(8, STRIDES, config).eval()
    for layer in (rpn.conv, rpn.logits, rpn.deltas):
        torch.nn.init.normal_(layer.weight, std=0.2)
    return rpn


def pyramid(num_images: int) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(num_images, 8, 32 >> i, 48 >> i) for i in range(5)]


def test_decoding_and_clipping_equal_the_official_ones():
    anchors = Anchors((8,), 8.0, (0.5, 1.0, 2.0))([(25, 34)])[0]
    deltas = drawn("deltas", (2550, 4), 0, 0.4)
    deltas[::97, 2] = 5
    deltas[::89, 3] = -6
    boxes = clip(decode_deltas(deltas, anchors), 197, 269)[::13]
    torch.testing.assert_close(boxes, half_open(case("decoded_every13")), rtol=0, atol=1e-3)


def test_a_batch_gives_what_its_pictures_give_alone():
    rpn, features = network(), pyramid(3)
    sizes = torch.tensor([[120, 180], [128, 192], [100, 150]])
    together = rpn.propose(rpn(features), sizes)
    assert together.image_index.diff().ge(0).all()
    for i in range(3):
        alone = rpn.propose(rpn([level[i : i + 1] for level in features]), sizes[i : i + 1])
        mine = together.image_index == i
        torch.testing.assert_close(together.boxes[mine], alone.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(together.scores[mine], alone.scores)


def test_proposals_lie_in_their_picture_best_first_and_few_enough():
    rpn, sizes = network(), torch.tensor([[120, 180], [64, 40]])
    proposals = rpn.propose(rpn(pyramid(2)), sizes)
    for i, (height, width) in enumerate(sizes.tolist()):
        boxes = proposals.boxes[proposals.image_index == i]
        scores = proposals.scores[proposals.image_index == i]
        assert 0 < len(boxes) <= 30
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()
        assert scores.diff().le(0).all()


def test_training_keeps_more_proposals_than_inference():
    rpn, sizes = network(nms_iou=0.99), torch.tensor([[128, 192]])
    output = rpn(pyramid(1))
    assert len(rpn.propose(output, sizes)) == 30
    assert len(rpn.train().propose(output, sizes)) == 60


def test_rois_carry_the_picture_they_are_in():
    rpn = network()
    proposals = rpn.propose(rpn(pyramid(2)), torch.tensor([[128, 192], [128, 192]]))
    assert proposals.rois.shape == (len(proposals), 5)
    assert torch.equal(proposals.rois[:, 0].long(), proposals.image_index)
    assert torch.equal(proposals.rois[:, 1:], proposals.boxes)


def test_best_per_image_keeps_the_first_of_each_picture_and_knows_pictures_without_any():
    image_index = torch.tensor([2, 0, 2, 0, 2, 0, 2])
    assert best_per_image(image_index, 4, 2).tolist() == [1, 3, 0, 2]
    assert best_per_image(image_index[:0], 2, 5).tolist() == []


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])]
)
def test_anchors_that_tie_rank_in_their_order_in_any_company(device: str):
    num_anchors, plain = 40_000, torch.zeros(40_000)
    plain[:9], plain[-5:] = -1, 1
    torch.manual_seed(0)
    logits = torch.stack((plain, *torch.randn(23, num_anchors))).to(device)
    anchors = torch.tensor([[0.0, 0, 9, 9]], device=device).expand(num_anchors, 4)
    output = RpnOutput(logits, logits.new_zeros(24, num_anchors, 4), anchors, (num_anchors,))
    scores, index, _ = _best_per_level(output, 1000)
    assert index[0].tolist() == [*range(num_anchors - 5, num_anchors), *range(9, 1004)]
    for i in range(24):
        one = slice(i, i + 1)
        alone = replace(output, logits=logits[one], deltas=output.deltas[one])
        for together, wanted in zip((scores, index), _best_per_level(alone, 1000), strict=False):
            assert torch.equal(together[one], wanted)
        best = logits[i].sigmoid().sort(descending=True, stable=True)
        assert torch.equal(scores[i], best.values[:1000])
        assert torch.equal(index[i], best.indices[:1000])
