"""An index as a COCO-format document: what evaluation and other tools read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from d2det.data.index import DatasetIndex
from d2det.data.masks import mask_areas


def to_coco(index: DatasetIndex) -> dict[str, Any]:
    """Returns the index as a COCO document: boxes (x, y, width, height), masks as run lengths.

    Ignored objects are crowds (`iscrowd` 1): evaluation forgives detections in them. Words about
    a picture stand in its "attributes".
    """
    images = [
        {"id": image_id, "file_name": name, "height": height, "width": width}
        for image_id, name, (height, width) in zip(
            index.image_ids.tolist(), index.file_names, index.image_sizes.tolist(), strict=True
        )
    ]
    for image, words in zip(images, index.attributes, strict=False):
        image["attributes"] = sorted(words)
    return {
        "images": images,
        "annotations": _annotations(index),
        "categories": [{"id": c.id, "name": c.name} for c in index.categories],
    }


def write_coco(index: DatasetIndex, path: Path) -> None:
    """Writes the index as a COCO-format file; the same index gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(to_coco(index), separators=(",", ":")))


def _annotations(index: DatasetIndex) -> list[dict[str, Any]]:
    owners = np.repeat(np.arange(len(index)), np.diff(index.starts))
    boxes = index.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    category_ids = [category.id for category in index.categories]
    annotations: list[dict[str, Any]] = [
        {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": int(is_ignored),
            "segmentation": [],
        }
        for annotation_id, image_id, label, box, is_ignored in zip(
            index.annotation_ids.tolist(),
            index.image_ids[owners].tolist(),
            index.labels.tolist(),
            boxes.tolist(),
            index.is_ignored.tolist(),
            strict=True,
        )
    ]
    if index.masks is not None:
        for row, (annotation, owner) in enumerate(zip(annotations, owners, strict=True)):
            if counts := index.masks[row]:
                size = index.image_sizes[owner].tolist()
                annotation["segmentation"] = {"size": size, "counts": counts.decode("ascii")}
                annotation["area"] = mask_areas([counts]).item()
    return annotations
