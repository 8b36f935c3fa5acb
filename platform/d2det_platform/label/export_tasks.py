"""Import files for people who review labels: Label Studio tasks and CVAT's XML."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape, quoteattr

import orjson

from d2det_platform.label import uris
from d2det_platform.label.export_coco import numbered_rows
from d2det_platform.label.labels import output_file
from d2det_platform.label.layout import Run
from d2det_platform.label.plan import Plan
from d2det_platform.store import RunStore

LABEL_STUDIO, LABEL_CONFIG = "tasks/label_studio.json", "tasks/label_studio.xml"
CVAT = "tasks/cvat.xml"


def write_label_studio(store: RunStore, run: Run, plan: Plan, *, min_score: float) -> list[str]:
    """Writes tasks with predictions, and the labelling configuration they fit."""
    with output_file(store, LABEL_STUDIO) as file:
        separator = b"[\n"
        for row in numbered_rows(store, run, plan):
            if row["error"] is None:
                file.write(separator + orjson.dumps(_task(row, run, min_score)))
                separator = b",\n"
        file.write(b"\n]\n" if separator == b",\n" else b"[]\n")
    labels = "".join(f"<Label value={quoteattr(c.name)}/>" for c in run.model.categories)
    config = (
        f'<View><Image name="image" value="$image"/>'
        f'<RectangleLabels name="label" toName="image">{labels}</RectangleLabels></View>\n'
    )
    store.write(LABEL_CONFIG, config.encode())
    return [LABEL_STUDIO, LABEL_CONFIG]


def write_cvat(store: RunStore, run: Run, plan: Plan, *, min_score: float) -> list[str]:
    """Writes CVAT for images 1.1: boxes, picture by picture."""
    with output_file(store, CVAT) as file:
        labels = "".join(
            f"<label><name>{escape(c.name)}</name><attributes></attributes></label>"
            for c in run.model.categories
        )
        file.write(
            b'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
            + f"<meta><task><labels>{labels}</labels></task></meta>\n".encode()
        )
        for row in numbered_rows(store, run, plan):
            if row["error"] is None:
                file.write(_cvat_image(row, min_score).encode())
        file.write(b"</annotations>\n")
    return [CVAT]


def _task(row: dict[str, Any], run: Run, min_score: float) -> dict[str, Any]:
    kept = [found for found in row["detections"] if found["score"] >= min_score]
    prediction = {
        "model_version": f"{run.model.name}@{run.model.digest[:8]}",
        "score": max((found["score"] for found in kept), default=0.0),
        "result": [_rectangle(found, row, number) for number, found in enumerate(kept)],
    }
    data = {"image": _address(row["uri"]), "uri": row["uri"]}
    return {"id": row["image_id"], "data": data, "predictions": [prediction]}


def _rectangle(found: dict[str, Any], row: dict[str, Any], number: int) -> dict[str, Any]:
    x1, y1, x2, y2 = found["bbox"]
    wide, high = 100 / row["width"], 100 / row["height"]
    return {
        "id": f"{row['image_id']}-{number}",
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
        "original_width": row["width"],
        "original_height": row["height"],
        "image_rotation": 0,
        "score": found["score"],
        "value": {
            "x": x1 * wide,
            "y": y1 * high,
            "width": (x2 - x1) * wide,
            "height": (y2 - y1) * high,
            "rotation": 0,
            "rectanglelabels": [found["label"]],
        },
    }


def _address(uri: str) -> str:
    """What Label Studio loads: files through its local storage, the rest by their URL."""
    if not uris.is_local(uri):
        return uri
    return f"/data/local-files/?d={uri.removeprefix('file:///')}"


def _cvat_image(row: dict[str, Any], min_score: float) -> str:
    boxes = "".join(
        f'<box label={quoteattr(found["label"])} source="auto" occluded="0" z_order="0" '
        'xtl="{:.2f}" ytl="{:.2f}" xbr="{:.2f}" ybr="{:.2f}"></box>'.format(*found["bbox"])
        for found in row["detections"]
        if found["score"] >= min_score
    )
    name = quoteattr("".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in row["name"]))
    size = f'width="{row["width"]}" height="{row["height"]}"'
    return f'<image id="{row["image_id"]}" name={name} {size}>{boxes}</image>\n'
