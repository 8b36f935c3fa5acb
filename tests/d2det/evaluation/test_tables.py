"""Ground truth and detections as columns."""

from __future__ import annotations

import json

import numpy as np
import pytest

from d2det.data.coco_json import read_coco
from d2det.data.index import build_index
from d2det.evaluation.coco import evaluate_coco
from d2det.evaluation.results import read_detections, read_ground_truth
from d2det.evaluation.tables import DetectionTable, GroundTruth
from d2det.structures import Category
from tests.d2det.evaluation.made import found, made_annotations, made_results


def test_an_index_scores_as_the_annotations_it_was_read_from(tmp_path) -> None:
    annotations = made_annotations(2)
    for row in annotations["annotations"]:
        row["id"] += 1
    direct = read_ground_truth(annotations)
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(annotations))
    by_index = GroundTruth.from_index(read_coco(path))
    rows = made_results(annotations, 2)
    scores = [
        evaluate_coco(truth, read_detections(rows, truth), kinds=["bbox", "segm"])
        for truth in (direct, by_index)
    ]
    # The sizes of objects differ (stated, counted in pixels), and boxes are float32 in an index.
    for name in ("bbox/AP", "segm/AP", "bbox/AR10"):
        assert scores[1][name] == pytest.approx(scores[0][name], abs=2e-3)
    assert (by_index.crowd.sum(), len(by_index)) == (direct.crowd.sum(), len(direct))


def test_an_index_in_any_order_of_pictures_and_categories_is_understood() -> None:
    index = build_index(
        (Category(9, "b"), Category(4, "a")),
        file_names=["second.png", "first.png"],
        image_ids=[20, 10],
        image_sizes=[(50, 60), (70, 80)],
        owners=[1, 0, 1],
        labels=[0, 1, 1],
        boxes=[[0, 0, 10, 10], [5, 5, 25, 15], [30, 30, 40, 50]],
        is_ignored=[False, False, True],
        attributes=[frozenset({"night"}), frozenset()],
    )
    truth = GroundTruth.from_index(index)
    assert truth.file_names == ("first.png", "second.png")
    assert truth.sizes.tolist() == [[70, 80], [50, 60]]
    assert truth.attributes == (frozenset(), frozenset({"night"}))
    rows = [found(10, [0, 0, 10, 10], 0.9, 9), found(20, [5, 5, 20, 10], 0.9, 4)]
    assert evaluate_coco(truth, read_detections(rows, truth))["bbox/AP"] == pytest.approx(1)


def test_parts_of_a_table_keep_pictures_and_objects_together() -> None:
    annotations = made_annotations(1)
    truth = read_ground_truth(annotations)
    table = read_detections(made_results(annotations, 1), truth)
    half = np.arange(len(truth.image_ids)) % 2 == 0
    parts = [(truth.of_images(h), table.of_images(h)) for h in (half, ~half)]
    assert sum(len(part) for part, _ in parts) == len(truth)
    assert sum(len(part) for _, part in parts) == len(table)
    for part, detections in parts:
        wanted = np.isin(truth.image_ids, part.image_ids)
        np.testing.assert_array_equal(part.boxes, truth.boxes[wanted[truth.image]])
        np.testing.assert_array_equal(
            part.image_ids[detections.image], truth.image_ids[table.image[wanted[table.image]]]
        )


def test_columns_of_different_length_are_refused() -> None:
    one, two = np.zeros(1, np.int64), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="different length"):
        DetectionTable(one, one, np.zeros((1, 4)), np.zeros(2))
    with pytest.raises(ValueError, match="0 masks for 2"):
        DetectionTable(two, two, np.zeros((2, 4)), np.zeros(2), masks=())
