"""Thresholds and calibration."""

from __future__ import annotations

import numpy as np
import pytest

from d2det.evaluation.results import read_detections, read_ground_truth
from d2det.evaluation.score_analysis import THRESHOLDS, analyze_scores
from tests.d2det.evaluation.made import found, made_annotations, made_results, one_class, truth_row


def test_best_threshold_is_that_of_trying_every_score() -> None:
    annotations = made_annotations(2)
    truth = read_ground_truth(annotations)
    table = read_detections(made_results(annotations, 2), truth)
    analysis = analyze_scores(truth, table)
    # Removing low-scored detections does not change who matches whom, so every threshold can be
    # tried by evaluating what is left.
    tried = [
        analyze_scores(truth, table.select(table.scores >= score)).curves[2, 0]
        for score in np.unique(table.scores)
    ]
    assert analysis.best.f1 == pytest.approx(max(tried))
    at = np.searchsorted(THRESHOLDS, analysis.best.threshold)
    assert analysis.curves[2, at] == pytest.approx(analysis.best.f1, abs=0.05)
    precision, recall = analysis.best.precision, analysis.best.recall
    assert 2 * precision * recall / (precision + recall) == pytest.approx(analysis.best.f1)


def test_equal_scores_are_kept_or_dropped_together() -> None:
    truth = read_ground_truth(one_class([truth_row(0, 1, [0, 0, 40, 40])]))
    rows = [found(0, [0, 0, 40, 40], 0.5), *[found(0, [90, 90, 9, 9], 0.5)] * 3]
    best = analyze_scores(truth, read_detections(rows, truth)).best
    assert (best.threshold, best.precision, best.recall) == (0.5, 0.25, 1.0)


def test_a_calibrated_result_has_no_error() -> None:
    objects = [truth_row(0, 1, [20 * n, 0, 15, 15]) for n in range(10)]
    truth = read_ground_truth(one_class(objects))
    right = [found(0, row["bbox"], 0.75) for row in objects[:6]]
    wrong = [found(1, [20 * n, 0, 15, 15], 0.75) for n in range(2)]
    calibration = analyze_scores(truth, read_detections(right + wrong, truth)).calibration
    assert calibration.error == pytest.approx(0)
    assert calibration.counts.tolist() == [0] * 7 + [8, 0, 0]
    assert np.isnan(calibration.precision[0])


def test_nothing_detected_has_no_best_point() -> None:
    truth = read_ground_truth(one_class([truth_row(0, 1, [0, 0, 40, 40])]))
    analysis = analyze_scores(truth, read_detections([], truth))
    assert analysis.best is None
    assert analysis.best_of_class == (None,)
    assert analysis.calibration.error == 0
    assert (analysis.curves[0] == 1).all()
