"""PASCAL VOC average precision against a loop that follows the kit, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from d2det.evaluation.results import read_detections, read_ground_truth
from d2det.evaluation.voc import evaluate_voc
from tests.d2det.evaluation.made import found, made_annotations, made_results, one_class, truth_row


def _iou(a, b) -> float:
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def _voc_loop(annotations, results, category_id: int, iou: float, eleven_points: bool):
    """The kit's evaluation of one class, detection after detection."""
    objects = [a for a in annotations["annotations"] if a["category_id"] == category_id]
    total = sum(not a["ignore"] for a in objects)
    used, hits, precision, recall = set(), [], [], []
    rows = [r for r in results if r["category_id"] == category_id]
    for row in sorted(rows, key=lambda r: -r["score"]):
        near = [a for a in objects if a["image_id"] == row["image_id"]]
        best = max(near, key=lambda a: _iou(a["bbox"], row["bbox"]), default=None)
        if best is not None and _iou(best["bbox"], row["bbox"]) >= iou:
            if best["ignore"]:
                continue
            hits.append(best["id"] not in used)
            used.add(best["id"])
        else:
            hits.append(False)
        precision.append(sum(hits) / len(hits))
        recall.append(sum(hits) / total)
    if eleven_points:
        levels = np.linspace(0, 1, 11)
        return (
            sum(
                max((p for p, r in zip(precision, recall, strict=True) if r >= level), default=0)
                for level in levels
            )
            / 11
        )
    area, before = 0.0, 0.0
    for n, r in enumerate(recall):
        area += (r - before) * max(precision[n:])
        before = r
    return area


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("iou", [0.5, 0.7])
@pytest.mark.parametrize("eleven_points", [False, True], ids=["area", "11 points"])
def test_equals_a_loop_that_follows_the_kit(seed, iou, eleven_points) -> None:
    annotations = made_annotations(seed)
    rng = np.random.default_rng(seed)
    for row in annotations["annotations"]:
        row.update(iscrowd=0, ignore=int(rng.random() < 0.15))
    rows = made_results(annotations, seed)
    for n, row in enumerate(rows):
        row["score"] += n * 1e-6  # the kit leaves the order of equal scores open
    truth = read_ground_truth(annotations)
    metrics = evaluate_voc(
        truth, read_detections(rows, truth), iou=iou, eleven_points=eleven_points
    )
    for one in metrics.per_class[:3]:
        expected = _voc_loop(annotations, rows, one.category.id, iou, eleven_points)
        assert one.ap == pytest.approx(expected, abs=1e-12)
    assert metrics.per_class[3].ap is None
    assert metrics.mean_ap == pytest.approx(np.mean([c.ap for c in metrics.per_class[:3]]))


def test_second_detection_of_an_object_is_wrong_and_difficult_objects_do_not_count() -> None:
    truth = read_ground_truth(
        one_class([truth_row(0, 1, [0, 0, 50, 50]), truth_row(0, 1, [99, 99, 50, 50], difficult=1)])
    )
    rows = [
        found(0, [0, 0, 50, 50], 0.9),
        found(0, [1, 0, 50, 50], 0.8),
        found(0, [99, 99, 50, 50], 0.7),
    ]
    one = evaluate_voc(truth, read_detections(rows, truth)).per_class[0]
    assert (one.num_objects, one.num_detections, one.ap) == (1, 3, pytest.approx(1))
    np.testing.assert_allclose(one.precision, [1, 0.5])


def test_detections_in_a_crowd_are_excused_but_not_taken_from_their_objects() -> None:
    truth = read_ground_truth(
        one_class([truth_row(0, 1, [0, 0, 200, 200], iscrowd=1), truth_row(0, 1, [10, 10, 20, 20])])
    )
    rows = [found(0, [10, 10, 20, 22], 0.9), found(0, [90, 90, 9, 9], 0.95)]
    assert evaluate_voc(truth, read_detections(rows, truth)).mean_ap == pytest.approx(1)


def test_overlap_of_exactly_the_threshold_suffices() -> None:
    truth = read_ground_truth(one_class([truth_row(0, 1, [0, 0, 10, 10])]))
    table = read_detections([found(0, [0, 0, 10, 5], 0.9)], truth)
    assert evaluate_voc(truth, table, iou=0.5).mean_ap == pytest.approx(1)
    assert evaluate_voc(truth, table, iou=0.51).mean_ap == 0


@pytest.mark.parametrize("iou", [0, -1, 1.01])
def test_impossible_threshold_is_refused(iou) -> None:
    truth = read_ground_truth(one_class([]))
    with pytest.raises(ValueError, match="iou"):
        evaluate_voc(truth, read_detections([], truth), iou=iou)


def test_nothing_to_measure_is_none() -> None:
    truth = read_ground_truth(one_class([]))
    assert evaluate_voc(truth, read_detections([], truth)).mean_ap is None
