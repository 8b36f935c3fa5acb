"""Small made data sets: COCO dictionaries with crowds, gaps in the ids, ties and empty pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 120, 160
CATEGORY_IDS = (2, 5, 11, 40)


def made_annotations(seed: int, *, images: int = 12, objects: int = 60) -> dict[str, Any]:
    """The last category has no object, and the last picture neither."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(4, 90, (objects, 2))
    corner = rng.uniform(0, 1, (objects, 2)) * (np.array([WIDTH, HEIGHT]) - size)
    boxes = np.concatenate((corner, size), 1).round(1)
    return {
        "images": [
            {"id": 10 + 7 * i, "file_name": f"{i:03}.jpg", "height": HEIGHT, "width": WIDTH}
            for i in range(images)
        ],
        "categories": [
            {"id": c, "name": f"class {c}", "supercategory": "odd" if c % 2 else "even"}
            for c in CATEGORY_IDS
        ],
        "annotations": [
            {
                "id": n,
                "image_id": 10 + 7 * int(rng.integers(0, images - 1)),
                "category_id": CATEGORY_IDS[int(rng.integers(0, 3))],
                "bbox": boxes[n].tolist(),
                "area": float(boxes[n, 2] * boxes[n, 3] * 0.9),
                "iscrowd": int(rng.random() < 0.1),
                "segmentation": _ellipse(boxes[n]),
            }
            for n in range(objects)
        ],
    }


def made_results(annotations: dict[str, Any], seed: int, *, count: int = 300) -> list[Any]:
    """Detections near objects, with wrong classes, duplicates and equal scores among them."""
    rng = np.random.default_rng(seed + 1000)
    rows = []
    for _ in range(count):
        near = annotations["annotations"][int(rng.integers(0, len(annotations["annotations"])))]
        box = np.array(near["bbox"]) + rng.normal(0, 4, 4) * (rng.random() < 0.9)
        box[2:] = box[2:].clip(1)
        box = box.round(1)
        right = rng.random() < 0.8
        rows.append(
            {
                "image_id": near["image_id"],
                "category_id": near["category_id"] if right else int(rng.choice(CATEGORY_IDS)),
                "bbox": box.tolist(),
                "score": float(rng.random().__round__(1)),
                "segmentation": _ellipse(box),
            }
        )
    return rows


def truth_row(image_id: int, category_id: int, bbox: list[float], **fields: Any) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, **fields}


def one_class(rows: list[dict[str, Any]], *, images: int = 2) -> dict[str, Any]:
    """Annotations of one category, id 1, in pictures 0, 1 ... of 200 x 200 pixels."""
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": 200, "width": 200} for i in range(images)
        ],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": n + 1, **row} for n, row in enumerate(rows)],
    }


def found(image_id: int, bbox: list[float], score: float, category_id: int = 1) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


def _ellipse(box: np.ndarray) -> dict[str, Any]:
    x, y, w, h = box
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    points = np.stack((x + w / 2 * (1 + np.cos(angle)), y + h / 2 * (1 + np.sin(angle))), 1)
    rle = coco_mask.frPyObjects([points.ravel().tolist()], HEIGHT, WIDTH)[0]
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
