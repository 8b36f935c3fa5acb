"""Pictures of the worst mistakes of each kind: the surest false ones, the largest missed ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2det.evaluation.error_types import ERROR_TYPES, ErrorTypes
from d2det.evaluation.tables import GroundTruth
from d2det.visualize import Colour, DrawingStyle, Picture, draw_masks, draw_objects, fit

logger = logging.getLogger(__name__)

TRUE_COLOUR: Colour = (70, 210, 110)
WRONG_COLOUR: Colour = (255, 90, 60)
CONTEXT = 1.0
"""Shown around the objects, in their size, on each side."""
MIN_SIDE = 160
"""Least pixels of the picture that are shown."""
SHOWN_SIDE = 340
"""Pixels of an example's longer side."""


@dataclass(frozen=True)
class Example:
    """One mistake: the kind, what happened in words, and a picture of the place."""

    error: str
    caption: str
    file_name: str
    picture: Picture


def worst_errors(
    types: ErrorTypes,
    ground_truth: GroundTruth,
    read_picture: Callable[[str], Picture],
    *,
    per_type: int = 8,
) -> list[Example]:
    """Returns examples of every kind of mistake, worst first, at most one a picture and kind.

    Args:
        types: the mistakes.
        ground_truth: the annotations.
        read_picture: from a file name of the annotations to (H, W, 3) uint8 RGB; a ValueError or
            OSError of it leaves the example out, with a warning.
        per_type: examples of each kind.
    """
    examples = []
    for error in range(len(ERROR_TYPES)):
        kept = 0
        for image, detection, object_ in _worst(types, ground_truth, error):
            name = ground_truth.file_names[image]
            try:
                picture = read_picture(name)
            except (ValueError, OSError) as problem:
                logger.warning("no example from %s: %s", name, problem)
                continue
            examples.append(
                Example(
                    ERROR_TYPES[error],
                    _caption(types, ground_truth, detection, object_),
                    name,
                    _drawn(types, ground_truth, detection, object_, picture),
                )
            )
            kept += 1
            if kept == per_type:
                break
    return examples


def _worst(
    types: ErrorTypes, ground_truth: GroundTruth, error: int
) -> Iterator[tuple[int, int | None, int | None]]:
    """(picture, detection, object) of mistakes of one kind, worst first, one a picture."""
    table = types.detections
    if ERROR_TYPES[error] == "missed":
        order = types.missed[np.argsort(-ground_truth.areas[types.missed], kind="stable")]
        images = ground_truth.image[order]
    else:
        rows = np.flatnonzero(types.error == error)
        order = rows[np.argsort(-table.ranking(types.kind)[rows], kind="stable")]
        images = table.image[order]
    for place in np.sort(np.unique(images, return_index=True)[1]):
        row, image = int(order[place]), int(images[place])
        if ERROR_TYPES[error] == "missed":
            yield image, None, row
        else:
            object_ = int(types.object[row])
            yield image, row, None if object_ < 0 else object_


def _caption(
    types: ErrorTypes, ground_truth: GroundTruth, detection: int | None, object_: int | None
) -> str:
    true = "" if object_ is None else ground_truth.names[ground_truth.label[object_]]
    if detection is None:
        return f"{true} not found"
    table = types.detections
    found = ground_truth.names[table.label[detection]]
    score = f"{found} {table.ranking(types.kind)[detection]:.2f}"
    return f"{score}, nothing there" if object_ is None else f"{score}, there is: {true}"


def _drawn(
    types: ErrorTypes,
    ground_truth: GroundTruth,
    detection: int | None,
    object_: int | None,
    picture: Picture,
) -> Picture:
    """The place, enlarged: the object in green, the detection in red."""
    boxes, masks, colours = [], [], []
    for table, row, colour in (
        (ground_truth, object_, TRUE_COLOUR),
        (types.detections, detection, WRONG_COLOUR),
    ):
        if row is not None:
            boxes.append(_corners(table.boxes[row]))
            colours.append(colour)
            if types.kind == "segm" and table.masks is not None:
                masks.append(table.masks[row])
    corners = np.stack(boxes)
    if masks:
        picture = draw_masks(picture, masks, colours)
    x1, y1, x2, y2 = _window(corners, picture.shape[:2])
    part = fit(picture[y1:y2, x1:x2], (SHOWN_SIDE, SHOWN_SIDE))
    scale = part.shape[1] / (x2 - x1)
    return draw_objects(
        part,
        (corners - np.array([x1, y1, x1, y1])) * scale,
        [0] * len(boxes),
        ("",),
        colours=colours,
        style=DrawingStyle(labels="none", line_width=2),
    )


def _corners(box: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate((box[:2], box[:2] + box[2:]))


def _window(boxes: NDArray[np.float64], frame: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Pixels (x1, y1, x2, y2) of the picture to show: the boxes with what is around them."""
    height, width = frame
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    side = max(float((high - low).max()) * (1 + 2 * CONTEXT), MIN_SIDE)
    centre = (low + high) / 2
    w, h = min(round(side), width), min(round(side), height)
    x = int(np.clip(round(centre[0] - w / 2), 0, width - w))
    y = int(np.clip(round(centre[1] - h / 2), 0, height - h))
    return x, y, x + w, y + h
