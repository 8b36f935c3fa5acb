from __future__ import annotations

import torch

from d2det.config import RegressionConfig
from d2det.models.dense_regression import DensePrediction, DenseRegression, cell_boxes
from tests.oracle.ops import case, drawn, half_open


def head(**options) -> DenseRegression:
    torch.manual_seed(0)
    return DenseRegression(6, RegressionConfig(channels=8, num_convs=2, norm_groups=2, **options))


def test_decoding_equals_the_official_one_where_no_one_or_every_cell_votes():
    offsets = drawn("dlr.reg", (20, 4, 7, 7), 0.5, 0.3).clamp(min=0)
    overlap = drawn("dlr.mask", (20, 1, 7, 7), 0.1, 1.0)[:, 0]
    overlap[3:5] = -1
    overlap[4, 2, 5] = 0.5
    overlap[5] = 1
    boxes = half_open(case("dlr_in")[:, :4])
    decoded = head().decode(boxes, DensePrediction(offsets, overlap, offsets))
    torch.testing.assert_close(decoded, half_open(case("dlr_out")[:, :4]), rtol=0, atol=1e-3)


def test_without_overlap_prediction_every_cell_votes():
    offsets = torch.rand(5, 4, 7, 7)
    boxes = torch.tensor([[10.0, 20, 50, 90]]).expand(5, 4)
    nothing = torch.full((5, 7, 7), -1.0)
    decoded = head(overlap=False).decode(boxes, DensePrediction(offsets, nothing, offsets))
    torch.testing.assert_close(decoded, cell_boxes(boxes, offsets).mean((1, 2)))


def test_true_distances_decode_to_the_true_box_at_every_cell():
    proposals = torch.tensor([[10.0, 20, 60, 95], [0, 0, 21, 11]])
    truth = torch.tensor([[5.0, 25, 70, 90], [2, 1, 30, 12]])
    size = proposals[:, 2:] - proposals[:, :2] - 1
    step = (torch.arange(7) + 0.5) / 7
    x = (proposals[:, 0, None] + size[:, 0, None] * step)[:, None, :].expand(2, 7, 7)
    y = (proposals[:, 1, None] + size[:, 1, None] * step)[:, :, None].expand(2, 7, 7)
    left, top = x - truth[:, 0, None, None], y - truth[:, 1, None, None]
    right, bottom = truth[:, 2, None, None] - 1 - x, truth[:, 3, None, None] - 1 - y
    width, height = size[:, 0, None, None], size[:, 1, None, None]
    offsets = torch.stack((left / width, right / width, top / height, bottom / height), 1)
    expected = truth[:, None, None].expand(2, 7, 7, 4)
    torch.testing.assert_close(cell_boxes(proposals, offsets), expected, rtol=0, atol=1e-4)


def test_prediction_has_a_cell_for_every_second_bin_and_offsets_never_point_inwards():
    prediction = head()(torch.randn(3, 6, 14, 14))
    assert prediction.offsets.shape == (3, 4, 7, 7)
    assert prediction.overlap.shape == (3, 7, 7)
    assert prediction.features.shape == (3, 8, 7, 7)
    assert (prediction.offsets >= 0).all()


def test_no_boxes_are_regressed_to_no_boxes():
    model = head()
    prediction = model(torch.zeros(0, 6, 14, 14))
    assert model.decode(torch.zeros(0, 4), prediction).shape == (0, 4)
