from __future__ import annotations

import torch
import torch.nn.functional as F

from d2det.models.fpn import FeaturePyramid


@torch.no_grad()
def test_levels_are_merged_from_the_top_down_to_the_exact_lower_size():
    fpn = FeaturePyramid((2, 3, 4, 5), 6)
    stages = [
        torch.randn(1, c, h, w) for c, h, w in ((2, 20, 12), (3, 10, 6), (4, 5, 3), (5, 3, 2))
    ]
    merged = fpn.lateral[3](stages[3])
    expected = [fpn.output[3](merged)]
    for i in (2, 1, 0):
        above = F.interpolate(merged, size=stages[i].shape[-2:], mode="nearest")
        merged = fpn.lateral[i](stages[i]) + above
        expected.insert(0, fpn.output[i](merged))
    levels = fpn(stages)
    assert len(levels) == 5
    for a, b in zip(levels, expected, strict=False):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_the_coarsest_level_is_every_second_position_of_the_one_below():
    fpn = FeaturePyramid((2, 2, 2, 2), 4)
    levels = fpn([torch.randn(2, 2, 40 >> i, 24 >> i) for i in range(4)])
    assert torch.equal(levels[4], F.max_pool2d(levels[3], 1, stride=2))
