"""What comes out opens in the tools people have, and says the same everywhere."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools.coco import COCO

from d2det_platform import cli
from d2det_platform.label.layout import read_run
from d2det_platform.store import RunStore
from tests.platform.label.lakes import label_here, make_lake, options, read_labels

OUTPUT = {"label_studio": True, "cvat": True, "samples": 4}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lake = make_lake(tmp_path_factory.mktemp("data") / "lake", 12, ((80, 60), (50, 90)))
    (lake / "bad <b>.png").write_bytes(b"x")
    return lake


@pytest.fixture(scope="module")
def out(lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    label_here(options(lake, out=out, model="Squares", output=OUTPUT))
    return out


def test_pycocotools_loads_the_results_on_the_dataset(out: Path) -> None:
    dataset = COCO(str(out / "coco/dataset.json"))
    results = dataset.loadRes(str(out / "coco/results.json"))
    rows = [row for row in read_labels(out) if row["error"] is None]
    assert len(dataset.imgs) == len(rows)
    assert len(results.anns) == len(dataset.anns) == sum(len(row["detections"]) for row in rows)
    names = {image["file_name"]: number for number, image in dataset.imgs.items()}
    for row in rows:
        found = results.loadAnns(results.getAnnIds(imgIds=[names[row["name"]]]))
        assert len(found) == len(row["detections"])
        for a, d in zip(found, row["detections"], strict=True):
            x1, y1, x2, y2 = d["bbox"]
            assert a["bbox"] == [x1, y1, x2 - x1, y2 - y1]
            assert dataset.annToMask(a).sum() == (x2 - x1) * (y2 - y1)


def test_a_coco_input_keeps_its_numbers_and_names(lake: Path, tmp_path: Path) -> None:
    names = sorted(p.relative_to(lake).as_posix() for p in lake.rglob("*.png"))[:5]
    images = [{"id": 100 - i, "file_name": name} for i, name in enumerate(names)]
    (tmp_path / "a.json").write_text(json.dumps({"images": images}))
    label_here(options(tmp_path / "a.json", out=tmp_path / "out", image_root=str(lake)))
    dataset = json.loads((tmp_path / "out/coco/dataset.json").read_bytes())
    given = {image["id"]: image["file_name"] for image in images}
    assert all(given[image["id"]] == image["file_name"] for image in dataset["images"])
    assert len(dataset["images"]) >= 4


def test_label_studio_tasks_have_the_boxes_in_percent(out: Path) -> None:
    tasks = json.loads((out / "tasks/label_studio.json").read_bytes())
    rows = {row["uri"]: row for row in read_labels(out)}
    config = ET.parse(out / "tasks/label_studio.xml")
    labels = {label.get("value") for label in config.iter("Label")}
    for task in tasks:
        row = rows[task["data"]["uri"]]
        (prediction,) = task["predictions"]
        for region, d in zip(prediction["result"], row["detections"], strict=True):
            value = region["value"]
            box = np.array([value["x"], value["y"], value["width"], value["height"]]) / 100
            x, y, w, h = box * [row["width"], row["height"], row["width"], row["height"]]
            assert np.allclose([x, y, x + w, y + h], d["bbox"])
            assert set(value["rectanglelabels"]) <= labels


def test_cvat_xml_holds_every_box(out: Path) -> None:
    root = ET.parse(out / "tasks/cvat.xml").getroot()
    rows = [row for row in read_labels(out) if row["error"] is None]
    images = root.findall("image")
    assert [image.get("name") for image in images] == [row["name"] for row in rows]
    assert [len(image.findall("box")) for image in images] == [len(r["detections"]) for r in rows]


def test_the_card_counts_what_the_labels_hold(out: Path) -> None:
    card = json.loads((out / "run_card.json").read_bytes())
    rows = read_labels(out)
    assert card["counts"]["pictures"] == len(rows) == 13
    assert card["counts"]["errors"] == 1
    assert card["counts"]["detections"] == sum(len(row["detections"]) for row in rows)
    assert sum(card["classes"].values()) == sum(card["scores"].values())
    assert card["lineage"]["model_digest"] == read_run(RunStore(str(out))).model.digest
    page = (out / "run_card.html").read_text()
    assert page.count("<figure>") == 4
    assert "bad%20%3Cb%3E.png" in page


def test_merge_writes_other_outputs_without_predicting(out: Path) -> None:
    before = (out / "coco/results.json").read_bytes()
    (out / "coco/results.json").unlink()
    assert cli.main(["merge", str(out), "--output.label-studio", "--output.samples", "0"]) == 0
    assert (out / "coco/results.json").read_bytes() == before
    success = json.loads((out / "_SUCCESS").read_bytes())
    assert success["outputs"]["label_studio"]
    assert "tasks/cvat.xml" not in success["files"]


def test_merge_says_what_is_missing(
    lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label_here(options(lake, out=tmp_path))
    next((tmp_path / "labels").iterdir()).unlink()
    assert cli.main(["merge", str(tmp_path)]) == 1
    assert "not labelled yet" in capsys.readouterr().err


def test_error_rows_have_no_place_in_coco(out: Path) -> None:
    errors = pq.read_table(out / "errors.parquet").to_pylist()
    assert [row["name"] for row in errors] == ["bad <b>.png"]
    names = {i["file_name"] for i in json.loads((out / "coco/dataset.json").read_bytes())["images"]}
    assert "bad <b>.png" not in names
