"""The fast engine against pycocotools, and the edges of COCO's definition."""

from __future__ import annotations

import json

import numpy as np
import pytest

from d2det.evaluation.coco import coco_metrics_table, evaluate_coco
from d2det.evaluation.results import read_detections, read_ground_truth
from tests.d2det.evaluation.made import found, made_annotations, made_results, one_class, truth_row
from tests.shared import shared_dir

SUMMARY = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


@pytest.mark.parametrize(("kind", "name"), [("bbox", "fakebbox"), ("segm", "fakesegm")])
@pytest.mark.parametrize("engine", ["fast", "pycocotools"])
def test_all_numbers_equal_those_of_the_coco_demo(kind, name, engine) -> None:
    folder = shared_dir("data", "coco_eval_reference")
    truth = read_ground_truth(folder / "instances_val2014_100.json")
    results = read_detections(folder / f"instances_val2014_{name}100_results.json", truth)
    metrics = evaluate_coco(truth, results, kinds=[kind], engine=engine)
    expected = json.loads((folder / "expected_pycocotools.json").read_text())[kind]
    assert list(metrics.scores[0].summary) == SUMMARY
    assert list(metrics.as_dict().values()) == pytest.approx(expected, abs=1e-9)
    assert metrics[f"{kind}/AP75"] == metrics.scores[0].summary["AP75"]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("max_detections", [3, 100])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_curves_equal_the_reference_on_made_data(seed, max_detections, kind) -> None:
    annotations = made_annotations(seed)
    truth = read_ground_truth(annotations)
    results = read_detections(made_results(annotations, seed), truth)
    fast, reference = (
        evaluate_coco(truth, results, kinds=[kind], max_detections=max_detections, engine=engine)
        for engine in ("fast", "pycocotools")
    )
    for name in ("precision", "scores", "recall", "objects"):
        own, expected = (getattr(m.scores[0].curves, name) for m in (fast, reference))
        np.testing.assert_array_equal(own, expected, err_msg=name)
    assert fast.scores[0].per_class == reference.scores[0].per_class


def test_score_order_of_the_result_list_does_not_matter_without_ties() -> None:
    annotations = made_annotations(3)
    truth = read_ground_truth(annotations)
    rows = [{**row, "score": n / 300} for n, row in enumerate(made_results(annotations, 3))]
    ordered, shuffled = (
        evaluate_coco(truth, read_detections(some, truth)).as_dict() for some in (rows, rows[::-1])
    )
    assert ordered == shuffled


def test_no_detections_give_zero_not_an_error() -> None:
    truth = read_ground_truth(made_annotations(0))
    metrics = evaluate_coco(truth, read_detections([], truth), kinds=["bbox", "segm"])
    assert metrics["bbox/AP"] == metrics["segm/AP"] == metrics["bbox/AR100"] == 0


def test_no_objects_give_minus_one() -> None:
    truth = read_ground_truth(one_class([]))
    metrics = evaluate_coco(truth, read_detections([found(0, [1, 1, 9, 9], 0.9)], truth))
    assert set(metrics.as_dict().values()) == {-1.0}


def test_category_without_objects_is_left_out_of_the_mean() -> None:
    annotations = one_class([truth_row(0, 1, [10, 10, 50, 50])])
    alone = read_ground_truth(annotations)
    annotations["categories"].append({"id": 9, "name": "absent"})
    with_absent = read_ground_truth(annotations)
    rows = [found(0, [10, 10, 50, 50], 0.9), found(1, [3, 3, 9, 9], 0.9)]
    wrong = found(1, [3, 3, 9, 9], 0.99, category_id=9)
    one = evaluate_coco(alone, read_detections(rows, alone))
    two = evaluate_coco(with_absent, read_detections([*rows, wrong], with_absent))
    assert one["bbox/AP"] == two["bbox/AP"] == pytest.approx(1)
    assert two.scores[0].per_class[1].ap == -1.0
    assert coco_metrics_table(two.scores[0])[2][:4] == ("absent", "0", "1", "-")


def test_detections_in_a_crowd_region_are_not_mistakes() -> None:
    crowd = truth_row(0, 1, [0, 0, 100, 100], iscrowd=1)
    truth = read_ground_truth(one_class([crowd, truth_row(0, 1, [150, 150, 40, 40])]))
    rows = [found(0, [10 * n, 10, 20, 20], 0.9) for n in range(6)]
    rows.append(found(0, [150, 150, 40, 40], 0.5))
    assert evaluate_coco(truth, read_detections(rows, truth))["bbox/AP"] == pytest.approx(1)


def test_an_annotation_id_of_zero_counts_as_any_other() -> None:
    annotations = one_class([truth_row(0, 1, [10, 10, 50, 50])])
    annotations["annotations"][0]["id"] = 0
    truth = read_ground_truth(annotations)
    results = read_detections([found(0, [10, 10, 50, 50], 0.9)], truth)
    for engine in ("fast", "pycocotools"):
        assert evaluate_coco(truth, results, engine=engine)["bbox/AP"] == pytest.approx(1)


def test_more_detections_than_the_cap_are_cut_by_score() -> None:
    objects = [truth_row(0, 1, [20 * n, 0, 15, 15]) for n in range(8)]
    truth = read_ground_truth(one_class(objects))
    rows = [found(0, row["bbox"], 0.1 * (n + 1)) for n, row in enumerate(objects)]
    table = read_detections(rows, truth)
    assert evaluate_coco(truth, table, max_detections=4)["bbox/AR4"] == 0.5
    assert evaluate_coco(truth, table, max_detections=500)["bbox/AR500"] == 1.0


def test_masks_that_are_not_there_are_refused() -> None:
    truth = read_ground_truth(one_class([truth_row(0, 1, [10, 10, 50, 50])]))
    table = read_detections([found(0, [10, 10, 50, 50], 0.9)], truth)
    with pytest.raises(ValueError, match="no masks"):
        evaluate_coco(truth, table, kinds=["segm"])


def test_unknown_number_is_answered_with_the_known_ones() -> None:
    truth = read_ground_truth(one_class([]))
    with pytest.raises(KeyError, match="bbox/AP50"):
        evaluate_coco(truth, read_detections([], truth))["AP"]
    with pytest.raises(ValueError, match="got 0"):
        evaluate_coco(truth, read_detections([], truth), max_detections=0)
