"""Small data sets made on the spot."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

CocoMaker = Callable[..., tuple[Path, Path]]


@pytest.fixture
def make_coco(tmp_path: Path) -> CocoMaker:
    """Writes a COCO-format data set of noise pictures; returns (images folder, json)."""

    def make(
        sizes: list[tuple[int, int]], annotations: list[dict[str, Any]], **document: Any
    ) -> tuple[Path, Path]:
        images = tmp_path / "images"
        images.mkdir(exist_ok=True)
        entries = []
        for number, (height, width) in enumerate(sizes, start=1):
            pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
            cv2.imwrite(str(images / f"{number}.png"), pixels)
            entries.append(
                {"id": number, "file_name": f"{number}.png", "height": height, "width": width}
            )
        whole = {
            "images": entries,
            "annotations": annotations,
            "categories": [{"id": 3, "name": "car"}, {"id": 1, "name": "plane"}],
        }
        path = tmp_path / "instances_train.json"
        path.write_text(json.dumps(whole | document))
        return images, path

    return make
