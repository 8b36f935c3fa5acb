"""Result and annotation files: both forms read, whatever does not fit refused by name."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from d2det.evaluation.coco import evaluate_coco
from d2det.evaluation.results import (
    coco_results,
    read_detections,
    read_ground_truth,
    table_of_predictions,
)
from d2det.structures import Category, Detections
from tests.d2det.evaluation.made import (
    HEIGHT,
    WIDTH,
    found,
    made_annotations,
    made_results,
    one_class,
    truth_row,
)


def _as_project_form(annotations, rows) -> dict:
    """The project's JSON of COCO results."""
    images = []
    for image in annotations["images"]:
        detections = []
        for row in rows:
            if row["image_id"] == image["id"]:
                x, y, w, h = row["bbox"]
                detections.append(
                    {
                        "bbox": [x, y, x + w, y + h],
                        "score": row["score"],
                        "label": 0,
                        "category_id": row["category_id"],
                        "mask": row["segmentation"],
                        "mask_score": row["score"],
                    }
                )
        images.append({"file_name": f"some/{image['file_name']}", "detections": detections})
    return {"images": images}


def test_both_forms_give_the_same_numbers(tmp_path) -> None:
    annotations = made_annotations(0)
    rows = made_results(annotations, 0)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(_as_project_form(annotations, rows)))
    truth = read_ground_truth(annotations)
    coco, own = (
        evaluate_coco(truth, read_detections(source, truth), kinds=["bbox", "segm"]).as_dict()
        for source in (rows, path)
    )
    # Corners and sizes differ in the last digit; the made scores have ties across pictures.
    assert own == pytest.approx(coco, abs=1e-9)


def test_written_results_read_back_as_they_were() -> None:
    annotations = made_annotations(4)
    truth = read_ground_truth(annotations)
    table = read_detections(made_results(annotations, 4), truth)
    written = json.loads(json.dumps(coco_results(table, truth)))
    again = read_detections(written, truth)
    for name in ("image", "label", "boxes", "scores", "mask_scores"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))
    assert again.masks == table.masks


def test_predictions_become_rows_of_their_category_ids() -> None:
    annotations = one_class([truth_row(0, 1, [10, 20, 30, 40])])
    annotations["categories"].append({"id": 7, "name": "other"})
    truth = read_ground_truth(annotations)
    predictions = {
        1: Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), (9, 9)),
        0: Detections(
            torch.tensor([[10.0, 20, 40, 60]]), torch.tensor([0.5]), torch.tensor([1]), (200, 200)
        ),
    }
    categories = (Category(7, "other"), Category(1, "thing"))
    table = table_of_predictions(predictions, categories, truth)
    assert coco_results(table, truth) == [found(0, [10.0, 20.0, 30.0, 40.0], 0.5)]
    assert evaluate_coco(truth, table)["bbox/AP"] == pytest.approx(1)
    assert len(table_of_predictions({}, categories, truth)) == 0


def test_masks_without_boxes_bring_their_own_boxes() -> None:
    annotations = made_annotations(0)
    truth = read_ground_truth(annotations)
    rows = [{k: v for k, v in r.items() if k != "bbox"} for r in made_results(annotations, 0)]
    table = read_detections(rows, truth)
    full = read_detections(made_results(annotations, 0), truth).boxes
    inside = (full[:, :2].min(1) > 0) & (full[:, 0] + full[:, 2] < WIDTH)
    inside &= (full[:, 1] + full[:, 3] < HEIGHT) & (full[:, 2:].min(1) > 4)
    assert np.abs(table.boxes - full)[inside].max() < 2


def test_polygons_and_both_kinds_of_run_lengths_are_one_mask() -> None:
    polygon = [[10, 10, 30, 10, 30, 20, 10, 20]]
    counts = [10 * 200 + 10, *([10, 190] * 19), 10]
    counts.append(200 * 200 - sum(counts))
    rle = {"size": [200, 200], "counts": counts}
    truth = read_ground_truth(
        one_class([truth_row(0, 1, [10, 10, 20, 10], segmentation=s) for s in (polygon, rle)])
    )
    assert truth.masks[0] == truth.masks[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, "detection 0 has image id 99"),
        ({"category_id": 3}, "detection 0 has category id 3"),
        ({"score": float("nan")}, "detection 0 has a score that is not finite"),
        ({"bbox": [0, 0, float("inf"), 1]}, "detection 0 has a bbox that is not finite"),
        ({"bbox": [0, 0, 1]}, "detection 0: bad or missing 'bbox'"),
        ({"bbox": [0, 0, -1, 1]}, "detection 0 has a box of negative size"),
        ({"score": "high"}, "detection 0: bad or missing 'score'"),
        ({"score": None}, "detection 0: bad or missing 'score': None"),
        ({"score": [0.5]}, "detection 0: bad or missing 'score'"),
        ({"image_id": 0.5}, "detection 0: bad or missing 'image_id': 0.5"),
        ({"image_id": float("inf")}, "detection 0: bad or missing 'image_id': inf"),
        ({"image_id": 10**400}, "detection 0: bad or missing 'image_id': 1000"),
        ({"category_id": "1"}, "detection 0: bad or missing 'category_id': '1'"),
        ({"bbox": 5}, "detection 0: bad or missing 'bbox': 5"),
        ({"bbox": [0, 0, 1, "1"]}, "detection 0: bad or missing 'bbox': .*'1'"),
        ({"bbox": [0, 0, 1, 10**400]}, "detection 0: bad or missing 'bbox'"),
        ({"segmentation": {"size": 7, "counts": "0"}}, "0: mask of size 7"),
        ({"segmentation": {"counts": "0"}}, "0: mask of size None"),
        ({"segmentation": {"size": [5, 5], "counts": "0"}}, r"0: mask of size \[5, 5\]"),
        ({"segmentation": [[0, 0, 9, 0]]}, "detection 0: polygon of 4 numbers"),
        ({"segmentation": {"size": [200, 200], "counts": "é"}}, "not a COCO run-length code"),
        ({"segmentation": {"size": [200, 200], "counts": "1q"}}, "not a COCO run-length code"),
        ({"segmentation": {"size": [200, 200], "counts": "1P"}}, "not a COCO run-length code"),
        ({"segmentation": {"size": [200, 200], "counts": ""}}, "not a COCO run-length code"),
        ({"segmentation": {"size": [200, 200], "counts": [3, -1]}}, "detection 0: run lengths"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_row_that_does_not_fit_is_named(change, message) -> None:
    truth = read_ground_truth(one_class([]))
    with pytest.raises(ValueError, match=message):
        read_detections([{**found(0, [0, 0, 5, 5], 0.5), **change}], truth)


def test_missing_field_is_named_with_its_row() -> None:
    truth = read_ground_truth(one_class([]))
    rows = [found(0, [0, 0, 5, 5], 0.5), {"image_id": 0}]
    with pytest.raises(ValueError, match="detection 1: bad or missing 'category_id'"):
        read_detections(rows, truth)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([{"file_name": "x.jpg", "detections": []}], "'x.jpg' of the results is not in"),
        ([{"file_name": "0.jpg", "detections": []}] * 2, "'0.jpg' more than once"),
        ([["0.jpg"]], r"picture 0 is \['0.jpg'\], not an object"),
        ("0.jpg", "where a list of picture objects belongs stands '0.jpg'"),
        ([{"file_name": "0.jpg"}], "where a list of detection objects belongs stands None"),
        ([{"file_name": "0.jpg", "detections": [7]}], "detection 0 is 7, not an object"),
        ([{"file_name": "same.jpg", "detections": []}], "fits several annotated pictures"),
    ],
)
def test_pictures_of_the_project_form_must_be_known(images, message) -> None:
    annotations = one_class([], images=4)
    annotations["images"][2]["file_name"] = "a/same.jpg"
    annotations["images"][3]["file_name"] = "b/same.jpg"
    with pytest.raises(ValueError, match=message):
        read_detections({"images": images}, read_ground_truth(annotations))


def test_pictures_without_an_entry_are_mentioned(caplog) -> None:
    truth = read_ground_truth(one_class([], images=3))
    read_detections({"images": [{"file_name": "1.jpg", "detections": []}]}, truth)
    assert "2 annotated pictures are not in the results" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("annotations", [truth_row(77, 1, [0, 0, 1, 1])], "image id 77"),
        ("annotations", [truth_row(0, 8, [0, 0, 1, 1])], "category id 8"),
        ("annotations", [{"image_id": 0, "category_id": 1}], "annotation 0: .*'bbox'"),
        ("images", [{"id": 3}, {"id": 3}], "image id 3 appears more than once"),
        ("categories", [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "category id 1"),
        ("annotations", {"0": truth_row(0, 1, [0, 0, 1, 1])}, "list of annotation objects"),
        ("annotations", [truth_row(0, 1, [0, 0, float("nan"), 1])], "annotation 0 has a bbox that"),
        ("annotations", [truth_row(0, 1, [0, 0, 1, 1], area="wide")], "0: bad or missing 'area'"),
        ("annotations", [truth_row(0, 1, [0, 0, 1, 1], iscrowd="no")], "bad or missing 'iscrowd'"),
        ("images", [{"id": 0}, "1.jpg"], "image 1 is '1.jpg', not an object"),
        ("images", [{"id": 0}, {"id": "x"}], "image 1: bad or missing 'id': 'x'"),
        ("images", [{"id": 0}, {"file_name": "1.jpg"}], "image 1: bad or missing 'id': None"),
        ("images", [{"id": 0, "height": {}}], "image 0: bad or missing 'height'"),
        ("images", [{"id": 5, "width": -2}], "image id 5 has a negative height or width"),
        ("images", [{"id": 5, "attributes": "night"}], "image id 5: attributes are 'night'"),
        ("categories", [{"id": 1}], "category 0: bad or missing 'name'"),
        ("categories", None, "where a list of category objects belongs stands None"),
    ],
)
def test_broken_annotations_are_refused(key, value, message) -> None:
    annotations = copy.deepcopy(one_class([]))
    annotations[key] = value
    with pytest.raises(ValueError, match=message):
        read_ground_truth(annotations)


def test_files_that_are_not_json_or_not_there_are_named(tmp_path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        read_ground_truth(broken)
    with pytest.raises(ValueError, match=r"cannot read .*absent\.json"):
        read_ground_truth(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="not a COCO annotation file"):
        read_ground_truth({"pictures": []})
    with pytest.raises(ValueError, match="results must be"):
        read_detections({"boxes": []}, read_ground_truth(one_class([])))


def test_objects_without_segmentation_are_named_when_masks_are_scored() -> None:
    truth = read_ground_truth(one_class([truth_row(0, 1, [0, 0, 5, 5])]))
    with pytest.raises(ValueError, match="object 0 has no segmentation"):
        _ = truth.masks
