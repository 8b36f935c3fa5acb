"""Rows of labels, and of the endpoint's answers, drawn on their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa

from d2det.inference.decode import read_image
from d2det.structures import Category
from d2det.visualize import draw_detections
from d2det_platform.label.schema import DETECTION, read_detections

DRAWN_SCORE = 0.5
_JPEG_QUALITY = 90


def draw_row(picture: Path, row: dict[str, Any], categories: Sequence[Category], out: Path) -> None:
    """Draws the detections of a row on its picture, and writes that as `out`.

    categories: of the weights, in label order, from which every page takes a class's colour.
    """
    labels = {category.id: label for label, category in enumerate(categories)}
    rows = pa.array(row["detections"], DETECTION)
    drawn = draw_detections(
        read_image(picture),
        read_detections(rows, (row["height"], row["width"]), labels),
        [category.name for category in categories],
        min_score=DRAWN_SCORE,
    )
    cv2.imwrite(str(out), drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
