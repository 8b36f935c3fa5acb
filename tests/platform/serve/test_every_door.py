"""Fifty real pictures through every door: the same boxes in the same order.

The doors are Python, the bulk job, and the endpoint in all its forms.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from d2det.inference.decode import decode_image
from d2det.inference.options import PredictOptions
from d2det.inference.predictor import Predictor
from d2det_platform.label import work
from d2det_platform.label.options import LabelOptions
from d2det_platform.serve.model import describe
from d2det_platform.serve.options import ServeOptions
from d2det_platform.serve.predictors import WeightsModel
from tests.platform.label.lakes import DecodersHere, label_here, read_labels
from tests.platform.serve.endpoint import serving
from tests.platform.serve.test_oip import INFER, binary_request, bytes_tensor, outputs_of
from tests.shared import shared_dir

COUNT = 50
FORMS = ("native", "coco", "geojson", "roboflow", "labelstudio")


@pytest.fixture(scope="module")
def pictures() -> list[Path]:
    folder = shared_dir("data", "coco_subset", "val")
    return sorted(folder.glob("*.jpg"))[:COUNT]


@pytest.fixture(scope="module")
def expected(pictures: list[Path], small_weights: Path) -> list[np.ndarray]:
    predictor = Predictor.load(small_weights)
    return [predictor.predict([decode_image(p.read_bytes())])[0].boxes.numpy() for p in pictures]


def boxes_in(form: str, body: Any, size: tuple[int, int]) -> list[list[float]]:
    """The boxes, x1 y1 x2 y2 in pixels, in an answer of a form."""
    height, width = size
    if form == "native":
        return [found["bbox"] for found in body["images"][0]["detections"]]
    if form == "coco":
        return [[x, y, x + w, y + h] for x, y, w, h in (found["bbox"] for found in body)]
    if form == "geojson":
        rings = [feature["geometry"]["coordinates"][0] for feature in body["features"]]
        return [[*ring[0], *ring[2]] for ring in rings]
    if form == "roboflow":
        found = [(p["x"], p["y"], p["width"] / 2, p["height"] / 2) for p in body["predictions"]]
        return [[x - w, y - h, x + w, y + h] for x, y, w, h in found]
    values = [region["value"] for region in body[0]["result"]]
    scale = np.array([width, height, width, height]) / 100
    return [
        list(np.array([v["x"], v["y"], v["x"] + v["width"], v["y"] + v["height"]]) * scale)
        for v in values
    ]


def same(found: Any, boxes: np.ndarray) -> bool:
    found = np.array(found, float).reshape(-1, 4)
    # Centres and percents add a rounding of a thousandth each.
    return found.shape == boxes.shape and np.abs(found - boxes).max(initial=0) <= 2e-3


def test_the_endpoint_in_every_form_equals_the_python_door(
    pictures: list[Path], expected: list[np.ndarray], small_weights: Path
) -> None:
    assert len(pictures) == COUNT
    info = describe(small_weights, None, "d2det")
    given = ServeOptions(weights=small_weights)

    async def check() -> None:
        model = WeightsModel(small_weights, PredictOptions())
        async with serving(model, info=info, given=given) as http:

            async def one(path: Path, boxes: np.ndarray) -> None:
                data = path.read_bytes()
                size = decode_image(data).shape[:2]
                for form in FORMS:
                    answer = await http.post(f"/v1/detect?format={form}", content=data)
                    assert same(boxes_in(form, answer.json(), size), boxes), (path.name, form)
                body, headers = binary_request(
                    bytes_tensor(data), [1], "BYTES", parameters={"binary_data_output": True}
                )
                answer = await http.post(INFER, content=body, headers=headers)
                assert same(outputs_of(answer)["boxes"], boxes), path.name

            for start in range(0, COUNT, 5):  # neighbours in the batches
                these = zip(pictures, expected, strict=True)
                await asyncio.gather(*(one(*each) for each in list(these)[start : start + 5]))
            files = [("file", (p.name, p.read_bytes())) for p in pictures[:8]]
            rows = (await http.post("/v1/detect", files=files)).json()["images"]
            assert [row["file_name"] for row in rows] == [p.name for p in pictures[:8]]
            for row, boxes in zip(rows, expected[:8], strict=True):
                assert same([found["bbox"] for found in row["detections"]], boxes)

    asyncio.run(check())


def test_the_bulk_job_equals_the_python_door(
    pictures: list[Path],
    expected: list[np.ndarray],
    small_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(work, "Decoders", DecodersHere)
    label_here(
        LabelOptions(
            inputs=tuple(map(str, pictures)),
            out=str(tmp_path / "out"),
            weights=str(small_weights),
            output={"samples": 0},
        )
    )
    rows = {Path(row["name"]).name: row for row in read_labels(tmp_path / "out")}
    assert len(rows) == COUNT
    for path, boxes in zip(pictures, expected, strict=True):
        assert same([found["bbox"] for found in rows[path.name]["detections"]], boxes), path.name
