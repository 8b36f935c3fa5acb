"""Some labelled pictures as small JPEGs with their objects drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from d2det.structures import Detections, Rle
from d2det.visualize import draw_detections
from d2det_platform.label.cost import CostModel
from d2det_platform.label.decoders import Decoders, Request
from d2det_platform.label.inspect import SCENE_PIXELS
from d2det_platform.label.layout import Run
from d2det_platform.label.models import cost_model

WIDTH_PX = 640
_QUALITY = 85
MIN_SCORE = 0.3
"""Lowest score that is drawn."""


@dataclass(frozen=True)
class Sample:
    """A drawn picture. name: of the picture, and which part of it where it is large."""

    name: str
    jpeg: bytes


def draw_samples(run: Run, rows: Sequence[dict[str, Any]]) -> list[Sample]:
    """Returns label rows drawn on their pictures; those that can no longer be read are left out."""
    if not rows:
        return []
    options, cost = run.options, cost_model(run.options, run.model)
    parts = [_part(row, cost) for row in rows]
    requests = [
        Request(row["uri"], window=part if _by_window(row, run) else None)
        for row, part in zip(rows, parts, strict=True)
    ]
    samples = []
    with Decoders(
        limits=options.limits,
        raster=options.raster,
        timeout_s=options.work.decode_timeout_s,
        image_column=options.image_column,
    ) as decoders:
        contents = decoders.read(requests)
        for row, part, request, content in zip(rows, parts, requests, contents, strict=True):
            if not isinstance(content, np.ndarray):
                continue
            x, y, width, height = part
            if request.window is None:
                content = content[y : y + height, x : x + width]
            name = row["name"] if (x, y) == (0, 0) else f"{row['name']}, from {x}, {y}"
            samples.append(Sample(name, _drawn(content, row, part, run)))
    return samples


def _by_window(row: dict[str, Any], run: Run) -> bool:
    is_large = row["width"] * row["height"] > SCENE_PIXELS and row["seams"] is not None
    is_tiff = row["uri"].lower().endswith((".tif", ".tiff"))
    is_raster = row["crs"] is not None or not run.options.raster.is_default
    return is_tiff and (is_large or is_raster)


def _part(row: dict[str, Any], cost: CostModel) -> tuple[int, int, int, int]:
    """x, y, width, height that is shown: all, or of a cut picture the window with most objects."""
    width, height = row["width"], row["height"]
    if not cost.is_tiled(height, width):
        return 0, 0, width, height
    windows = cost.cut(height, width)
    boxes = np.array([found["bbox"] for found in row["detections"]], float).reshape(-1, 4)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    scores = np.array([found["score"] for found in row["detections"]])
    counts = [
        scores[
            (centres[:, 0] >= w.x)
            & (centres[:, 0] < w.x + w.width)
            & (centres[:, 1] >= w.y)
            & (centres[:, 1] < w.y + w.height)
        ].sum()
        for w in windows
    ]
    best = windows[int(np.argmax(counts))]
    return best.x, best.y, best.width, best.height


def _drawn(
    image: NDArray[np.uint8], row: dict[str, Any], part: tuple[int, int, int, int], run: Run
) -> bytes:
    found = _detections(row, part, [category.id for category in run.model.categories])
    names = [category.name for category in run.model.categories]
    image = draw_detections(np.ascontiguousarray(image), found, names, min_score=MIN_SCORE)
    if image.shape[1] > WIDTH_PX:
        height = max(1, round(image.shape[0] * WIDTH_PX / image.shape[1]))
        image = cv2.resize(image, (WIDTH_PX, height), interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
    return encoded.tobytes()


def _detections(
    row: dict[str, Any], part: tuple[int, int, int, int], ids: Sequence[int]
) -> Detections:
    """The detections of a row that have their centre in a part of it, in the part's frame."""
    x, y, width, height = part
    is_whole = (width, height) == (row["width"], row["height"])
    inside = [
        found
        for found in row["detections"]
        if x <= (found["bbox"][0] + found["bbox"][2]) / 2 <= x + width
        and y <= (found["bbox"][1] + found["bbox"][3]) / 2 <= y + height
    ]
    boxes = torch.tensor([found["bbox"] for found in inside], dtype=torch.float32).reshape(-1, 4)
    masks, mask_scores = None, None
    if is_whole and inside and all(found["mask"] is not None for found in inside):
        masks = tuple(
            Rle(size=tuple(found["mask"]["size"]), counts=found["mask"]["counts"].encode())
            for found in inside
        )
        mask_scores = torch.tensor([found["mask_score"] for found in inside])
    return Detections(
        boxes=boxes - torch.tensor([x, y, x, y]),
        scores=torch.tensor([found["score"] for found in inside], dtype=torch.float32),
        labels=torch.tensor([ids.index(found["category_id"]) for found in inside]).long(),
        size=(height, width),
        masks=masks,
        mask_scores=mask_scores,
    )
