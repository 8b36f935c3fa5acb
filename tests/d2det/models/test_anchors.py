from __future__ import annotations

import torch

from d2det.models.anchors import Anchors
from tests.oracle.ops import case, half_open
from tests.oracle.trace import generated

OFFICIAL = Anchors((4, 8, 16, 32, 64), 8.0, (0.5, 1.0, 2.0))


def test_anchors_of_the_first_cell_are_the_official_table():
    trace = generated("d2det_r50", "r50_detection", "oracle_r50det_generated")
    found = torch.stack(OFFICIAL([(1, 1)] * 5))
    assert torch.equal(found, half_open(trace["base_anchors"]))


def test_order_is_rows_then_columns_then_ratios():
    grid = OFFICIAL([(1, 1), (25, 34), (1, 1), (1, 1), (1, 1)])[1]
    assert grid.shape == (25 * 34 * 3, 4)
    assert torch.equal(grid[:200], half_open(case("anchors_s8_25x34_first")))
    expected = case("anchors_s8_sum") + torch.tensor([0.0, 0, 1, 1]) * len(grid)
    assert torch.equal(grid.double().sum(0), expected)
