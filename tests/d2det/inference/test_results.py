"""Result rows follow the schema, survive a round trip and export as COCO results."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from d2det.inference.results import (
    ResultFile,
    ResultWriter,
    coco_results,
    error_row,
    image_row,
)
from d2det.structures import Category, Detections
from tests.d2det.inference.scenes import filled

CATEGORIES = (Category(id=7, name="ship"), Category(id=3, name="tank"))
BOX = [2.0, 3.0, 12.12345, 8.0]


def detections(masks: bool) -> Detections:
    return Detections(
        boxes=torch.tensor([BOX, [0, 0, 1, 1]]),
        scores=torch.tensor([0.9, 0.12345678]),
        labels=torch.tensor([1, 0]),
        size=(20, 30),
        masks=(filled(BOX, (20, 30)), filled([0, 0, 1, 1], (20, 30))) if masks else None,
        mask_scores=torch.tensor([1.1, 0.2]) if masks else None,
    )


@pytest.mark.parametrize("masks", [False, True])
def test_a_row_holds_names_ids_and_numbers(masks: bool) -> None:
    row = json.loads(
        image_row("a.jpg", detections(masks), CATEGORIES).model_dump_json(exclude_none=True)
    )
    assert (row["file_name"], row["width"], row["height"]) == ("a.jpg", 30, 20)
    first, second = row["detections"]
    assert first["bbox"] == [2, 3, 12.123, 8]
    assert (first["label"], first["category_id"]) == ("tank", 3)
    assert (second["label"], second["category_id"], second["score"]) == ("ship", 7, 0.123457)
    assert ("mask" in first) == ("mask_score" in first) == masks
    if masks:
        assert first["mask"]["size"] == [20, 30]
        assert first["mask_score"] == pytest.approx(1.1)


def test_a_file_is_what_was_written_and_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.json"
    rows = [
        image_row("ä \n.jpg", detections(True), CATEGORIES),
        error_row("bad.png", "truncated", "png data ends early"),
        image_row(
            "none.jpg", detections(False).select(torch.tensor([], dtype=torch.long)), CATEGORIES
        ),
    ]
    with ResultWriter(path) as writer:
        for row in rows:
            writer.write(row)
        assert not path.exists()
    assert ResultFile.model_validate_json(path.read_text()).images == tuple(rows)
    bad = json.loads(path.read_text())["images"][1]
    assert bad["error"] == {"reason": "truncated", "detail": "png data ends early"}
    assert bad["width"] is None
    assert bad["detections"] == []
    with ResultWriter(path):
        pass
    assert json.loads(path.read_text()) == {"version": 1, "images": []}


def test_a_failed_run_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), ResultWriter(path):
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_coco_tools_read_the_export() -> None:
    row = image_row("a.jpg", detections(True), CATEGORIES)
    annotations = COCO()
    annotations.dataset = {
        "images": [{"id": 5, "width": 30, "height": 20}],
        "annotations": [],
        "categories": [{"id": 3, "name": "tank"}, {"id": 7, "name": "ship"}],
    }
    annotations.createIndex()
    results = coco_results([row, error_row("b", "empty", "")], {"a.jpg": 5})
    loaded = annotations.loadRes(results)
    assert len(loaded.anns) == 2
    assert results[0]["bbox"] == [2, 3, 10.123, 5]
    mask = loaded.annToMask(loaded.anns[1])
    assert np.array_equal(np.argwhere(mask).min(0), [3, 2])
    assert mask.sum() == 50
