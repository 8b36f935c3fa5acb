"""COCO results, as pycocotools loads them, and a full COCO data set with scores."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from typing import IO, Any

import orjson

from d2det import rle
from d2det.structures import Rle
from d2det_platform.label.labels import label_rows, output_file
from d2det_platform.label.layout import Run
from d2det_platform.label.plan import Plan
from d2det_platform.store import RunStore

RESULTS, DATASET = "coco/results.json", "coco/dataset.json"


def has_own_ids(run: Run) -> bool:
    """Returns whether pictures keep the numbers that the input gave them: one COCO file's do."""
    return len(run.options.inputs) == 1 and run.options.inputs[0].lower().endswith(".json")


def numbered_rows(store: RunStore, run: Run, plan: Plan) -> Iterator[dict[str, Any]]:
    """Yields all labels with an `image_id`: the input's, or their place from 1 on."""
    own = has_own_ids(run)
    for number, row in enumerate(label_rows(store, run, plan), 1):
        yield row if own else {**row, "image_id": number}


def write_coco(store: RunStore, run: Run, plan: Plan) -> list[str]:
    """Writes both files and returns their names. Pictures with errors are in neither."""
    with (
        output_file(store, RESULTS) as results,
        output_file(store, DATASET) as dataset,
        tempfile.TemporaryFile() as annotations,
    ):
        lists = [_JsonList(results), _JsonList(dataset, _dataset_head(run)), _JsonList(annotations)]
        number = 0
        for row in numbered_rows(store, run, plan):
            if row["error"] is not None:
                continue
            lists[1].add(_image(row))
            for found in row["detections"]:
                number += 1
                result = _result(row["image_id"], found)
                lists[0].add(result)
                lists[2].add(_annotation(number, result))
        for each in lists:
            each.close()
        annotations.seek(0)
        dataset.write(b',\n"annotations":')
        shutil.copyfileobj(annotations, dataset, 1 << 20)
        dataset.write(b"}\n")
    return [RESULTS, DATASET]


class _JsonList:
    """A JSON list written row by row."""

    def __init__(self, file: IO[bytes], head: bytes = b"") -> None:
        self._file, self._separator = file, head + b"[\n"

    def add(self, row: dict[str, Any]) -> None:
        self._file.write(self._separator + orjson.dumps(row))
        self._separator = b",\n"

    def close(self) -> None:
        self._file.write(b"\n]" if self._separator == b",\n" else self._separator + b"]")


def _dataset_head(run: Run) -> bytes:
    info = {
        "description": f"labels by {run.model.name}",
        "run": run.key,
        "model_digest": run.model.digest,
    }
    categories = [{"id": category.id, "name": category.name} for category in run.model.categories]
    head = orjson.dumps({"info": info, "licenses": [], "categories": categories})
    return head[:-1] + b',\n"images":'


def _image(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["image_id"],
        "file_name": row["name"],
        "width": row["width"],
        "height": row["height"],
        "coco_url": row["uri"],
    }


def _result(image_id: int, found: dict[str, Any]) -> dict[str, Any]:
    """A COCO result. Numbers are not rounded: scores of files and of memory are the same."""
    x1, y1, x2, y2 = found["bbox"]
    result = {
        "image_id": image_id,
        "category_id": found["category_id"],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "score": found["score"],
    }
    if found["mask"] is not None:
        result["segmentation"] = found["mask"]
        result["mask_score"] = found["mask_score"]
    return result


def _annotation(number: int, result: dict[str, Any]) -> dict[str, Any]:
    mask = result.get("segmentation")
    if mask is None:
        area = result["bbox"][2] * result["bbox"][3]
    else:
        area = rle.area(Rle(size=tuple(mask["size"]), counts=mask["counts"].encode()))
    return {"id": number, **result, "area": area, "iscrowd": 0}
