from __future__ import annotations

import torch

from d2det.boxes import encode_deltas
from d2det.config import RegressionConfig
from d2det.models.box_regression import DELTA_STD, DeltaRegression


def test_decoding_undoes_encoding():
    head = DeltaRegression(4, RegressionConfig(kind="delta", hidden=8))
    proposals = torch.tensor([[10.0, 20, 60, 95], [0, 0, 21, 11]])
    truth = torch.tensor([[5.0, 25, 70, 90], [2, 1, 30, 12]])
    deltas = encode_deltas(truth, proposals) / torch.tensor(DELTA_STD)
    torch.testing.assert_close(head.decode(proposals, deltas), truth)


def test_an_untrained_head_hardly_moves_boxes():
    torch.manual_seed(0)
    head = DeltaRegression(4, RegressionConfig(kind="delta", hidden=8))
    boxes = torch.tensor([[10.0, 20, 60, 95]] * 3)
    moved = head.decode(boxes, head(torch.randn(3, 4, 14, 14)))
    assert (moved - boxes).abs().max() < 1
