"""The confusion matrix: every object and every detection in exactly one place."""

from __future__ import annotations

import numpy as np
import pytest

from d2det.evaluation.confusion import confusion_matrix
from d2det.evaluation.results import read_detections, read_ground_truth
from tests.d2det.evaluation.made import found, made_annotations, made_results, one_class, truth_row


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_rows_add_up_to_the_objects_of_each_class(seed, kind) -> None:
    annotations = made_annotations(seed)
    truth = read_ground_truth(annotations)
    table = read_detections(made_results(annotations, seed), truth)
    matrix = confusion_matrix(truth, table, min_score=0.3, kind=kind).matrix
    objects = np.bincount(truth.label[~truth.crowd], minlength=4)
    np.testing.assert_array_equal(matrix[:-1].sum(1), objects)
    confident = np.bincount(table.label[table.scores >= 0.3], minlength=4)
    assert (matrix[:, :-1].sum(0) <= confident).all()


def test_each_outcome_has_its_cell() -> None:
    annotations = one_class(
        [
            truth_row(0, 1, [0, 0, 40, 40]),
            truth_row(0, 1, [60, 0, 40, 40]),
            truth_row(0, 1, [120, 0, 40, 40]),
            truth_row(1, 1, [0, 0, 99, 99], iscrowd=1),
        ]
    )
    annotations["categories"].append({"id": 5, "name": "other"})
    truth = read_ground_truth(annotations)
    rows = [
        found(0, [0, 0, 40, 40], 0.6),
        found(0, [0, 0, 40, 40], 0.9, category_id=5),  # better, but the object is rightly found
        found(0, [60, 0, 40, 40], 0.7, category_id=5),
        found(0, [120, 0, 40, 40], 0.2),  # below the threshold
        found(1, [10, 10, 20, 20], 0.9),  # in the crowd
    ]
    result = confusion_matrix(truth, read_detections(rows, truth), min_score=0.5)
    assert result.matrix.tolist() == [[1, 1, 1], [0, 0, 0], [0, 1, 0]]
    assert result.top_confusions() == [("thing", "other", 1)]


def test_nothing_detected_leaves_every_object_missed() -> None:
    truth = read_ground_truth(one_class([truth_row(0, 1, [0, 0, 40, 40])]))
    result = confusion_matrix(truth, read_detections([], truth), min_score=0.5)
    assert result.matrix.tolist() == [[0, 1], [0, 0]]
