"""`d2det evaluate`: options, printed tables and the JSON of every metric."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from d2det.checkpoints.weights import save_weights
from d2det.config import InputConfig, Preset
from d2det.evaluation.coco import evaluate_coco
from d2det.evaluation.evaluate import EvaluateCommand, run
from d2det.evaluation.results import read_detections, read_ground_truth
from d2det.inference.decode import read_image
from d2det.inference.predictor import Predictor
from d2det.structures import Category
from tests.d2det.evaluation.made import found, made_annotations, made_results, one_class, truth_row
from tests.d2det.models.small import CONFIG, small_detector
from tests.shared import shared_dir


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    annotations = made_annotations(0)
    paths = {"annotations": tmp_path / "annotations.json", "results": tmp_path / "results.json"}
    paths["annotations"].write_text(json.dumps(annotations))
    paths["results"].write_text(json.dumps(made_results(annotations, 0)))
    return paths


def _numbers(tmp_path, **options) -> dict:
    path = tmp_path / "deep" / "numbers.json"
    assert run(EvaluateCommand(json_path=path, **options)) == 0
    return json.loads(path.read_text())


def test_coco_numbers_of_boxes_and_masks(files, tmp_path, capsys) -> None:
    truth = read_ground_truth(files["annotations"])
    table = read_detections(files["results"], truth)
    expected = evaluate_coco(truth, table, kinds=["bbox", "segm"], max_detections=30)
    numbers = _numbers(tmp_path, **files, masks=True, max_detections=30)
    assert numbers["metrics"] == expected.as_dict()
    assert numbers["per_class_ap"]["bbox/class 2"] == expected.scores[0].per_class[0].ap
    printed = capsys.readouterr().out
    assert "class 40" in printed
    assert f"{100 * expected['segm/AP']:.1f}" in printed
    again = _numbers(tmp_path, **files, masks=True, max_detections=30, engine="pycocotools")
    assert again["metrics"] == pytest.approx(numbers["metrics"], abs=1e-12)


def test_the_coco_demo_scores_through_the_command(tmp_path) -> None:
    folder = shared_dir("data", "coco_eval_reference")
    numbers = _numbers(
        tmp_path,
        annotations=folder / "instances_val2014_100.json",
        results=folder / "instances_val2014_fakebbox100_results.json",
    )
    expected = json.loads((folder / "expected_pycocotools.json").read_text())["bbox"]
    assert list(numbers["metrics"].values()) == pytest.approx(expected, abs=1e-9)


def test_voc_has_the_iou_and_points_asked_for(files, tmp_path, capsys) -> None:
    at_half = _numbers(tmp_path, **files, metric="voc")
    strict = _numbers(tmp_path, **files, metric="voc", iou=0.8, eleven_points=True)
    assert (at_half["iou"], strict["iou"]) == (0.5, 0.8)
    assert strict["mean_ap"] < at_half["mean_ap"]
    assert at_half["per_class_ap"]["class 40"] is None
    assert "AP@0.80 (11 points)" in capsys.readouterr().out


def test_uavdt_merges_classes_and_reports_attributes(tmp_path, capsys) -> None:
    annotations = one_class([truth_row(0, 1, [0, 0, 50, 50]), truth_row(1, 1, [9, 9, 60, 60])])
    annotations["images"][0]["attributes"] = ["night"]
    (tmp_path / "a.json").write_text(json.dumps(annotations))
    (tmp_path / "r.json").write_text(json.dumps([found(0, [0, 0, 50, 48], 0.9)]))
    numbers = _numbers(
        tmp_path, annotations=tmp_path / "a.json", results=tmp_path / "r.json", metric="uavdt"
    )
    assert numbers["per_attribute_ap"] == {"night": pytest.approx(1)}
    assert (numbers["ap"], numbers["iou"]) == (pytest.approx(0.5), 0.7)
    assert "night" in capsys.readouterr().out


def test_uavdt_reads_the_folder_of_its_authors(tmp_path) -> None:
    sequence = tmp_path / "UAV-benchmark-M" / "M0203"
    truth = tmp_path / "UAV-benchmark-MOTD_v1.0" / "GT"
    attributes = tmp_path / "M_attr" / "test"
    for folder in (sequence, truth, attributes):
        folder.mkdir(parents=True)
    cv2.imwrite(str(sequence / "img000001.jpg"), np.zeros((540, 1024, 3), np.uint8))
    (truth / "M0203_gt_whole.txt").write_text("1,1,100,100,50,40,1,1,2\n1,2,700,10,30,20,1,1,1\n")
    (truth / "M0203_gt_ignore.txt").write_text("1,-1,650,0,200,200,1,-1,-1\n")
    (attributes / "M0203_attr.txt").write_text("1,0,0,1,0,0,0,0,1,0")
    results = {
        "images": [
            {
                "file_name": "img000001.jpg",
                "detections": [{"bbox": [100, 100, 150, 140], "score": 0.9, "category_id": 1}],
            }
        ]
    }
    (tmp_path / "r.json").write_text(json.dumps(results))
    numbers = _numbers(tmp_path, annotations=tmp_path, results=tmp_path / "r.json", metric="uavdt")
    assert numbers["ap"] == pytest.approx(1)
    assert numbers["objects_in_ignore_regions"] == 1
    assert set(numbers["per_attribute_ap"]) == {"daylight", "low altitude", "bird view"}


def test_tiles_and_scenes_are_scored_side_by_side(files, tmp_path, capsys) -> None:
    scenes = {"scene_annotations": files["annotations"], "scene_results": files["results"]}
    numbers = _numbers(tmp_path, **files, **scenes)
    assert numbers["tiles"]["bbox/AP"] == pytest.approx(numbers["scenes"]["bbox/AP"], abs=0.02)
    assert "bbox/APs" in capsys.readouterr().out


def test_weights_are_predicted_with_and_scored(tmp_path) -> None:
    preset = Preset(
        name="small", summary="", model=CONFIG, input=InputConfig(short_side=64, long_side=96)
    )
    categories = tuple(Category(id=k + 5, name=f"class {k}") for k in range(CONFIG.num_classes))
    save_weights(tmp_path / "w.safetensors", small_detector(), preset=preset, categories=categories)
    rng = np.random.default_rng(0)
    for n in range(3):
        pixels = rng.integers(0, 255, (50 + 10 * n, 70, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{n}.png"), pixels)
    predictor = Predictor.load(tmp_path / "w.safetensors")
    surest = predictor.predict([read_image(tmp_path / "1.png")])[0]
    x1, y1, x2, y2 = surest.boxes[0].double().tolist()
    annotations = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "height": 50 + 10 * n, "width": 70} for n in range(3)
        ],
        "categories": [{"id": c.id, "name": c.name} for c in categories],
        "annotations": [truth_row(1, categories[surest.labels[0]].id, [x1, y1, x2 - x1, y2 - y1])],
    }
    (tmp_path / "a.json").write_text(json.dumps(annotations))
    numbers = _numbers(
        tmp_path,
        annotations=tmp_path / "a.json",
        weights=tmp_path / "w.safetensors",
        images=tmp_path,
    )
    assert numbers["metrics"]["bbox/AP"] > 0
    (tmp_path / "2.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"2\.png"):
        _numbers(
            tmp_path,
            annotations=tmp_path / "a.json",
            weights=tmp_path / "w.safetensors",
            images=tmp_path,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either --results or --weights"),
        ({"results": "r", "weights": "w"}, "either --results or --weights"),
        ({"weights": "w"}, "needs --images"),
        ({"results": "r", "scene_results": "s"}, "come together"),
        ({"results": "r", "metric": "voc", "masks": True}, "boxes of one set"),
        ({"results": "r", "iou": 0.5}, "choose --metric voc"),
        ({"results": "r", "metric": "voc", "iou": 1.5}, "less than or equal to 1"),
        ({"results": "r", "max_detection": 5}, "did you mean 'max_detections'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluateCommand(annotations="a", **options)
