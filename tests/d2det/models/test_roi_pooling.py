from __future__ import annotations

import pytest
import torch
import torchvision

from d2det.config import RoiPoolingConfig
from d2det.models.roi_pooling import (
    ROI_STRIDES,
    DiscriminativeRoiPooling,
    align_rois,
    roi_levels,
)
from tests.d2det.models.small import spoken
from tests.oracle.ops import case, half_open


def features(num_images: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(num_images, 8, 256 // s, 320 // s) for s in ROI_STRIDES]


def rois() -> torch.Tensor:
    """RoIs of all levels in no order, in two pictures."""
    torch.manual_seed(1)
    side = torch.tensor([20.0, 300, 60, 150, 250, 30, 500, 90])
    corner = torch.rand(8, 2) * 60
    return torch.cat((torch.arange(8)[:, None] % 2, corner, corner + side[:, None]), 1)


def pooling(**options) -> DiscriminativeRoiPooling:
    torch.manual_seed(2)
    config = RoiPoolingConfig(offset_hidden=16, **options)
    return spoken(DiscriminativeRoiPooling(8, config)).eval()


def test_levels_equal_the_official_ones():
    boxes = half_open(case("level_rois"))[:, 1:]
    assert torch.equal(roi_levels(boxes), case("levels").long())


@pytest.mark.parametrize(
    "box", [[5, 5, 5, 5], [9, 9, 4, 12], [0, 0, 1e6, 1e6], [0, 0, float("nan"), 9]]
)
def test_degenerate_boxes_have_a_level_too(box):
    assert roi_levels(torch.tensor([box], dtype=torch.float32))[0] in range(4)


@pytest.mark.parametrize("deformable", [True, False])
@pytest.mark.parametrize("adaptive_weighting", [True, False])
@torch.no_grad()
def test_order_of_rois_does_not_matter_in_any_ablation(deformable, adaptive_weighting):
    layer = pooling(deformable=deformable, adaptive_weighting=adaptive_weighting)
    out = layer(features(), rois())
    assert out.shape == (8, 8, 7, 7)
    shuffle = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    torch.testing.assert_close(layer(features(), rois()[shuffle]), out[shuffle])


@torch.no_grad()
def test_levels_have_weights_of_their_own():
    layer, everything = pooling(), rois()
    before = layer(features(), everything)
    for parameter in (*layer.offsets[2].parameters(), *layer.weighting[2].parameters()):
        parameter += 0.5
    changed = (layer(features(), everything) - before).abs().amax((1, 2, 3)) > 0
    assert torch.equal(changed, roi_levels(everything[:, 1:]) == 2)


@torch.no_grad()
def test_without_both_ideas_it_is_the_usual_roi_align():
    layer = pooling(deformable=False, adaptive_weighting=False, samples_per_bin=1)
    levels, boxes = features(), rois()
    out = layer(levels, boxes)
    for i, level in enumerate(roi_levels(boxes[:, 1:]).tolist()):
        stride = ROI_STRIDES[level]
        shifted = boxes[i : i + 1] + torch.tensor([0, *[0.5 * stride] * 4])
        expected = torchvision.ops.roi_align(levels[level], shifted, 7, 1 / stride, 2, aligned=True)
        torch.testing.assert_close(out[i : i + 1], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_no_rois_give_no_features():
    assert pooling()(features(), torch.zeros(0, 5)).shape == (0, 8, 7, 7)
    assert align_rois(features(), torch.zeros(0, 5)).shape == (0, 8, 14, 14)


def test_gradients_reach_every_parameter_even_of_empty_levels():
    layer = pooling()
    layer(features(), rois()[:1]).square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
