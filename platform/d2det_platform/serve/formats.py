"""Rows of pictures in the forms that other tools read.

A row is `results.ImageRow` as a dict, with `file_name`; where a picture could not be read it has an
`error`, and forms that know no errors leave such a picture empty.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from d2det_platform.serve.asked import Format
from d2det_platform.serve.georeference import Georeference

Row = dict[str, Any]
Convert = Callable[[Sequence[Row], int, str, float], Any]
"""Rows, id of the first picture, version of the model, seconds taken, to what JSON holds."""

_DIGITS = 3


def convert(
    form: Format, rows: Sequence[Row], *, first_id: int, version: str, time_s: float
) -> Any:
    """Returns rows in a form other than native."""
    return _FORMS[form](rows, first_id, version, time_s)


def on_the_map(collection: Row, place: Georeference) -> Row:
    """Returns a collection of pixel polygons in longitude and latitude.

    Raises:
        ValueError: The coordinate system cannot be turned into those.
    """
    features = []
    for feature in collection["features"]:
        rings = [place.lon_lat(ring) for ring in feature["geometry"]["coordinates"]]
        features.append({**feature, "geometry": {"type": "Polygon", "coordinates": rings}})
    return {**collection, "frame": "EPSG:4326", "features": features}


def compact(found: Row) -> Row:
    """Returns a detection without the fields that do not apply, as result files have it."""
    if found.get("mask") is not None:
        return found
    return {name: value for name, value in found.items() if not name.startswith("mask")}


def _coco(rows: Sequence[Row], first_id: int, version: str, time_s: float) -> list[Row]:
    """COCO results, as `pycocotools` loads them: bbox is x, y, width, height."""
    results = []
    for image_id, row in enumerate(rows, first_id):
        for found in row["detections"]:
            x1, y1, x2, y2 = found["bbox"]
            result = {
                "image_id": image_id,
                "category_id": found["category_id"],
                "bbox": [x1, y1, round(x2 - x1, _DIGITS), round(y2 - y1, _DIGITS)],
                "score": found["score"],
            }
            if found.get("mask") is not None:
                result["segmentation"] = found["mask"]
                result["mask_score"] = found["mask_score"]
            results.append(result)
    return results


def _geojson(rows: Sequence[Row], first_id: int, version: str, time_s: float) -> Row:
    """Boxes as polygons, in pixels of their picture."""
    features = []
    for image_id, row in enumerate(rows, first_id):
        for found in row["detections"]:
            x1, y1, x2, y2 = found["bbox"]
            ring = [[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]]
            features.append(
                {
                    "type": "Feature",
                    "geometry": {"type": "Polygon", "coordinates": [ring]},
                    "properties": {
                        "image_id": image_id,
                        "file_name": row["file_name"],
                        "label": found["label"],
                        "category_id": found["category_id"],
                        "score": found["score"],
                    },
                }
            )
    return {"type": "FeatureCollection", "frame": "pixels", "features": features}


def _roboflow(rows: Sequence[Row], first_id: int, version: str, time_s: float) -> Any:
    """What `supervision.Detections.from_inference` reads; a list where there are several."""
    answers = [
        {
            "image": {"width": row["width"], "height": row["height"]},
            "predictions": [_roboflow_box(found) for found in row["detections"]],
            "time": round(time_s, 4),
        }
        for row in rows
    ]
    return answers[0] if len(answers) == 1 else answers


def _roboflow_box(found: Row) -> Row:
    x1, y1, x2, y2 = found["bbox"]
    return {
        "x": round((x1 + x2) / 2, _DIGITS),
        "y": round((y1 + y2) / 2, _DIGITS),
        "width": round(x2 - x1, _DIGITS),
        "height": round(y2 - y1, _DIGITS),
        "class": found["label"],
        "class_id": found["category_id"],
        "confidence": found["score"],
        "detection_id": str(uuid.uuid4()),
    }


def _label_studio(rows: Sequence[Row], first_id: int, version: str, time_s: float) -> list[Row]:
    return [label_studio(row, version=version) for row in rows]


def label_studio(
    row: Row, *, version: str, from_name: str = "label", to_name: str = "image"
) -> Row:
    """Returns the prediction of a task: rectangles in percent of the picture."""
    regions = [
        {
            "id": uuid.uuid4().hex[:10],
            "from_name": from_name,
            "to_name": to_name,
            "type": "rectanglelabels",
            "original_width": row["width"],
            "original_height": row["height"],
            "image_rotation": 0,
            "score": found["score"],
            "value": _percent(found, row["width"], row["height"]),
        }
        for found in row["detections"]
    ]
    scores = [found["score"] for found in row["detections"]]
    mean = sum(scores) / len(scores) if scores else 0.0
    return {"model_version": version, "score": round(mean, 6), "result": regions}


def _percent(found: Row, width: int, height: int) -> Row:
    x1, y1, x2, y2 = found["bbox"]
    return {
        "x": 100 * x1 / width,
        "y": 100 * y1 / height,
        "width": 100 * (x2 - x1) / width,
        "height": 100 * (y2 - y1) / height,
        "rotation": 0,
        "rectanglelabels": [found["label"]],
    }


_FORMS: dict[str, Convert] = {
    "coco": _coco,
    "geojson": _geojson,
    "roboflow": _roboflow,
    "labelstudio": _label_studio,
}
