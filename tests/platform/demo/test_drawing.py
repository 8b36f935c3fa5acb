from pathlib import Path

import cv2
import numpy as np
import pytest

from d2det.structures import Category
from d2det.visualize import class_colour
from d2det_platform.demo.drawing import draw_row

CATEGORIES = (Category(7, "ship"), Category(3, "car"))


@pytest.mark.parametrize("label", [0, 1])
def test_a_class_has_the_colour_it_has_on_the_other_pages(tmp_path: Path, label: int) -> None:
    cv2.imwrite(str(tmp_path / "in.png"), np.full((60, 80, 3), 90, np.uint8))
    found = {
        "category_id": CATEGORIES[label].id,
        "label": CATEGORIES[label].name,
        "score": 0.9,
        "bbox": [10, 30, 70, 50],
    }
    row = {"height": 60, "width": 80, "detections": [found]}
    draw_row(tmp_path / "in.png", row, CATEGORIES, tmp_path / "out.png")
    drawn = cv2.imread(str(tmp_path / "out.png"))[..., ::-1]
    assert tuple(drawn[40, 10].tolist()) == class_colour(label)
