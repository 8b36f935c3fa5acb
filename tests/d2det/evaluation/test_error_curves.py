"""The error curves against the analysis done with pycocotools, class after class."""

from __future__ import annotations

import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from d2det.evaluation.error_curves import STAGES, error_curves
from d2det.evaluation.results import read_detections, read_ground_truth
from tests.d2det.evaluation.made import found, made_annotations, made_results, one_class, truth_row


def _precision(annotations, results, kind: str, thresholds: list[float], label: int | None = None):
    """(T, R, K, A), or (T, R, A) of one class, by pycocotools."""
    truth = COCO()
    truth.dataset = copy.deepcopy(annotations)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), kind)
        run.params.iouThrs = np.array(thresholds)
        run.params.maxDets = [100]
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][..., 0]
    return precision if label is None else precision[:, :, label]


def _excusing(annotations, label: int, *, similar_only: bool):
    """The annotations with objects of other classes as crowd regions of class `label`."""
    changed = copy.deepcopy(annotations)
    groups = {c["id"]: c["supercategory"] for c in annotations["categories"]}
    own = annotations["categories"][label]["id"]
    for row in changed["annotations"]:
        alike = groups[row["category_id"]] == groups[own]
        if row["category_id"] != own and (alike or not similar_only):
            row.update(category_id=own, iscrowd=1)
    return changed


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(3))
def test_curves_are_those_of_the_analysis_with_pycocotools(seed, kind) -> None:
    annotations = made_annotations(seed)
    for row in annotations["annotations"]:
        row["id"] += 1  # the reference takes an object with id 0 for no match
    rows = made_results(annotations, seed)
    if kind == "segm":
        rows = [{k: v for k, v in row.items() if k != "bbox"} for row in rows]
    truth = read_ground_truth(annotations)
    curves = error_curves(truth, read_detections(rows, truth), kind=kind)
    plain = _precision(annotations, rows, kind, [0.75, 0.5, 0.1])
    np.testing.assert_array_equal(curves.precision[:3], plain)
    for label in range(3):
        for stage, similar_only in ((3, True), (4, False)):
            excusing = _excusing(annotations, label, similar_only=similar_only)
            expected = _precision(excusing, rows, kind, [0.1], label)[0]
            np.testing.assert_array_equal(curves.precision[stage, :, label], expected)


def test_each_stage_forgives_more_and_the_last_everything() -> None:
    annotations = made_annotations(5)
    truth = read_ground_truth(annotations)
    curves = error_curves(truth, read_detections(made_results(annotations, 5), truth))
    mean = curves.mean()
    assert mean.shape == (len(STAGES), 101)
    assert (np.diff(mean.mean(1)) >= 0).all()
    assert (mean[-1] == 1).all()
    assert set(np.unique(curves.of_class(0)[5])) <= {0.0, 1.0}


def test_sizes_and_classes_without_objects_have_no_curves() -> None:
    annotations = one_class([truth_row(0, 1, [0, 0, 20, 20])])
    annotations["categories"].append({"id": 2, "name": "absent"})
    truth = read_ground_truth(annotations)
    curves = error_curves(truth, read_detections([found(0, [0, 0, 20, 20], 0.9)], truth))
    assert curves.mean("small").min() == pytest.approx(1)
    assert curves.mean("large") is None
    assert curves.of_class(1) is None
