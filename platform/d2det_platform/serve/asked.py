"""What a request asks for: thresholds, classes, masks, windows and the form of the answer."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import Field

from d2det.config import Config
from d2det.inference.windows import Window, cut_windows
from d2det_platform.serve.limits import Limits
from d2det_platform.serve.model import ModelInfo
from d2det_platform.serve.problems import Problem

Format = Literal["native", "coco", "geojson", "roboflow", "labelstudio"]


MIN_TILE = 128


class Asked(Config):
    """Query parameters of a detection."""

    score_threshold: float | None = Field(default=None, ge=0, le=1, examples=[0.5])
    """Detections score more than this; the server's own threshold is a lower bound."""
    max_detections: int | None = Field(default=None, ge=1, examples=[100])
    """Detections of a picture, best first; `truncated` says that there were more."""
    classes: list[str] = Field(default=[], max_length=1000)
    """Names of classes to keep, by repeating the parameter or with commas; all where it is
    missing."""
    masks: bool = True
    """Answer with masks, where the model has them."""
    format: Format = "native"
    """Form of the answer."""
    tile: int | None = Field(default=None, ge=MIN_TILE, le=8192, examples=[800])
    """Cut pictures larger than this into windows of so many pixels and merge what is found."""
    overlap: int = Field(default=200, ge=0, le=4096)
    """Pixels that neighbouring windows share; at most half a window."""
    image_id: int = Field(default=1, ge=0, le=2**53)
    """Id of the first picture in the answer `coco`; the others follow."""
    file_name: str | None = Field(default=None, max_length=255)
    """Name of a picture that comes as the raw body."""

    def class_names(self) -> list[str]:
        """Returns the names of `classes`, those with commas taken apart."""
        return [name for each in self.classes for name in each.split(",") if name]


def windows_of(size: tuple[int, int], asked: Asked, limits: Limits) -> list[Window]:
    """Returns the windows of a picture of `size` (height, width).

    Raises:
        Problem: invalid_parameter, where there would be too many.
    """
    assert asked.tile is not None
    step = asked.tile - (overlap := min(asked.overlap, asked.tile // 2))
    if (size[0] // step + 1) * (size[1] // step + 1) > limits.max_windows:
        raise Problem(
            "invalid_parameter",
            f"the picture would have more than {limits.max_windows} windows; make tile larger",
            parameter="tile",
            limit=limits.max_windows,
        )
    return cut_windows(size, tile=asked.tile, overlap=overlap)


def check(asked: Asked, limits: Limits, info: ModelInfo) -> None:
    """Refuses what this model or these limits cannot give.

    Raises:
        Problem: invalid_parameter, with the nearest class where one is unknown.
    """
    if asked.max_detections is not None and asked.max_detections > limits.max_detections:
        raise Problem(
            "invalid_parameter",
            f"max_detections may be {limits.max_detections}",
            parameter="max_detections",
            limit=limits.max_detections,
        )
    known = [category.name for category in info.categories]
    for name in asked.class_names():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise Problem(
                "invalid_parameter", f"unknown class {name[:80]!r}{hint}", parameter="classes"
            )


def select(row: dict[str, Any], asked: Asked, cap: int | None) -> dict[str, Any]:
    """Returns a row with the detections asked for, and whether there were more.

    A higher threshold is a cut of the full result, so all requests can share a batch.

    cap: detections at which the model itself stops.
    """
    found = row["detections"]
    truncated = cap is not None and len(found) >= cap
    if (threshold := asked.score_threshold) is not None:
        kept = [each for each in found if each["score"] > threshold]
        truncated = truncated and len(kept) == len(found)
        found = kept
    if names := set(asked.class_names()):
        found = [each for each in found if each["label"] in names]
    if asked.max_detections is not None and len(found) > asked.max_detections:
        found, truncated = found[: asked.max_detections], True
    return {**row, "detections": list(found), "truncated": truncated}
