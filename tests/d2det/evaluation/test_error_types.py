"""Kinds of mistakes, each made on purpose."""

from __future__ import annotations

import pytest

from d2det.evaluation.coco import evaluate_coco
from d2det.evaluation.error_types import ERROR_TYPES, NO_ERROR, error_types
from d2det.evaluation.results import read_detections, read_ground_truth
from tests.d2det.evaluation.made import found, made_annotations, made_results, one_class, truth_row


def _two_classes(rows):
    annotations = one_class(rows)
    annotations["categories"].append({"id": 2, "name": "other"})
    return annotations


OBJECTS = [
    truth_row(0, 1, [0, 0, 40, 40]),
    truth_row(0, 2, [100, 0, 40, 40]),
    truth_row(0, 1, [0, 100, 80, 80], iscrowd=1),
]
RIGHT = found(0, [0, 0, 40, 40], 0.9)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (found(0, [100, 0, 40, 40], 0.8), "class"),
        (found(0, [102, 0, 40, 10], 0.8), "both"),
        (found(0, [1, 0, 40, 40], 0.8), "duplicate"),
        (found(0, [20, 0, 40, 40], 0.8), "location"),
        (found(0, [150, 150, 40, 40], 0.8), "background"),
        (found(1, [0, 0, 40, 40], 0.8), "background"),
        (found(0, [10, 110, 20, 20], 0.8), None),
        (found(0, [100, 0, 40, 40], 0.8, category_id=2), None),
    ],
    ids=["class", "both", "duplicate", "location", "nothing near", "other picture", "crowd", "hit"],
)
def test_a_mistake_is_of_the_kind_it_was_made_as(row, kind) -> None:
    truth = read_ground_truth(_two_classes(OBJECTS))
    types = error_types(truth, read_detections([RIGHT, row], truth))
    expected = [NO_ERROR, NO_ERROR if kind is None else ERROR_TYPES.index(kind)]
    by_score = [e for _, e in sorted(zip(-types.detections.scores, types.error, strict=True))]
    assert by_score == expected


def test_missed_objects_are_those_no_mistake_accounts_for() -> None:
    truth = read_ground_truth(_two_classes(OBJECTS))
    nothing = error_types(truth, read_detections([], truth))
    assert nothing.missed.tolist() == [0, 1]
    assert nothing.counts[ERROR_TYPES.index("missed")].tolist() == [1, 1]
    wrong_class = read_detections([found(0, [100, 0, 40, 40], 0.8)], truth)
    assert error_types(truth, wrong_class).missed.tolist() == [0]


def test_mending_the_only_kind_of_mistake_gives_full_ap() -> None:
    truth = read_ground_truth(_two_classes(OBJECTS))
    rows = [RIGHT, found(0, [100, 0, 40, 40], 0.8)]
    types = error_types(truth, read_detections(rows, truth))
    assert types.ap50 + types.gains[ERROR_TYPES.index("class")] == pytest.approx(1)
    background = [found(1, [0, 0, 9, 9], 0.95), RIGHT, {**rows[1], "category_id": 2}]
    types = error_types(truth, read_detections(background, truth))
    assert types.ap50 == pytest.approx(0.75)
    assert types.gains[ERROR_TYPES.index("background")] == pytest.approx(0.25)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_ap50_is_that_of_the_evaluation_and_mending_never_harms(kind) -> None:
    annotations = made_annotations(1)
    truth = read_ground_truth(annotations)
    table = read_detections(made_results(annotations, 1), truth)
    types = error_types(truth, table, kind=kind)
    expected = evaluate_coco(truth, table, kinds=[kind])[f"{kind}/AP50"]
    assert types.ap50 == pytest.approx(expected, abs=1e-12)
    assert (types.gains >= -1e-12).all()
    assert types.counts.sum() == (types.error != NO_ERROR).sum() + len(types.missed)
