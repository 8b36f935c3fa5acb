"""The UAVDT protocol: one class, ignore regions, attributes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2det.evaluation.results import read_detections, read_ground_truth
from d2det.evaluation.uavdt import covered_fraction, evaluate_uavdt
from tests.d2det.evaluation.made import found, one_class, truth_row

SQUARE = st.tuples(*[st.integers(0, 24)] * 2, *[st.integers(1, 24)] * 2)


@given(st.lists(SQUARE, max_size=5), st.lists(SQUARE, min_size=1, max_size=5))
def test_covered_fraction_is_that_of_counted_pixels(regions, boxes) -> None:
    truth = read_ground_truth(one_class([truth_row(1, 1, list(r)) for r in regions]))
    canvas = np.zeros((50, 50))
    for x, y, w, h in regions:
        canvas[y : y + h, x : x + w] = 1
    expected = [canvas[y : y + h, x : x + w].mean() for x, y, w, h in boxes]
    array = np.array(boxes, np.float64)
    own = covered_fraction(array, np.ones(len(boxes), np.int64), truth)
    np.testing.assert_allclose(own, expected, atol=1e-12)
    assert not covered_fraction(array, np.zeros(len(boxes), np.int64), truth).any()


def _scene():
    """Picture 0 by day, 1 by night; region at the left of picture 0 in two overlapping halves."""
    annotations = one_class(
        [
            truth_row(0, 1, [0, 0, 60, 100], ignore=1),
            truth_row(0, 1, [40, 0, 60, 100], iscrowd=1),
            truth_row(0, 1, [120, 20, 30, 30]),
            truth_row(0, 1, [10, 10, 20, 20]),
            truth_row(1, 1, [50, 50, 40, 40]),
        ]
    )
    annotations["images"][0]["attributes"] = ["daylight", "bird view"]
    annotations["images"][1]["attributes"] = ["night"]
    return annotations


def test_boxes_inside_ignore_regions_do_not_count() -> None:
    truth = read_ground_truth(_scene())
    rows = [
        found(0, [120, 20, 30, 30], 0.9),
        found(0, [30, 30, 30, 30], 0.95),  # covered by the union, not by either half
        found(0, [90, 30, 20, 20], 0.94),  # half inside
        found(1, [50, 50, 40, 40], 0.8),
    ]
    metrics = evaluate_uavdt(truth, read_detections(rows, truth))
    assert metrics.ap == pytest.approx(1)
    assert (metrics.num_ignored_detections, metrics.num_ignored_objects) == (2, 1)
    rows.append(found(0, [91, 30, 20, 20], 0.94))  # less than half inside: a mistake
    assert evaluate_uavdt(truth, read_detections(rows, truth)).ap < 1


def test_each_attribute_has_the_ap_of_its_pictures() -> None:
    truth = read_ground_truth(_scene())
    metrics = evaluate_uavdt(truth, read_detections([found(1, [50, 50, 40, 40], 0.8)], truth))
    scores = {one.attribute: one for one in metrics.per_attribute}
    assert list(scores) == ["bird view", "daylight", "night"]
    assert scores["night"].ap == pytest.approx(1)
    assert scores["daylight"].ap == 0
    assert (scores["daylight"].num_images, scores["daylight"].num_objects) == (1, 1)


def test_categories_are_one_class_at_iou_0_7() -> None:
    annotations = one_class([truth_row(0, 1, [0, 0, 100, 100])])
    annotations["categories"].append({"id": 2, "name": "truck"})
    truth = read_ground_truth(annotations)
    good, poor = ([found(0, [0, 0, 100, h], 0.9, category_id=2)] for h in (71, 69))
    assert evaluate_uavdt(truth, read_detections(good, truth)).ap == pytest.approx(1)
    assert evaluate_uavdt(truth, read_detections(poor, truth)).ap == 0
    assert evaluate_uavdt(truth, read_detections(poor, truth), iou=0.5).ap == pytest.approx(1)
