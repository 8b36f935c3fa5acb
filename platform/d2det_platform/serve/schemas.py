"""Answers of the native API as typed models: the OpenAPI description is made of these."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from d2det.inference.results import ImageRow
from d2det_platform.serve.limits import Limits

_BOX = [12.5, 40.25, 118.0, 96.75]
_FOUND: Any = {"bbox": _BOX, "score": 0.93, "label": "ship", "category_id": 4}


class _Answer(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class ModelName(_Answer):
    """Which weights gave an answer."""

    name: str = Field(examples=["d2det"])
    version: str = Field(examples=["4f1d6a1b0c2e"])
    """The first digits of the digest; of another model, "1"."""
    digest: str
    """sha256 of the tensors; empty for a model that is no weights file."""


class PictureTiming(_Answer):
    """Milliseconds at the detector."""

    queue: float
    decode: float
    infer: float
    """Of the whole batch."""
    post: float
    batch: int
    """Pictures that shared the batch."""


class Picture(ImageRow):
    """A picture, as in the result files of `d2det predict`, and how it was made."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "file_name": "harbour.jpg",
                    "width": 1333,
                    "height": 800,
                    "detections": [_FOUND],
                    "truncated": False,
                }
            ]
        }
    )

    truncated: bool = False
    """More was found than the limit of detections lets through."""
    timing_ms: PictureTiming | None = None


class DetectAnswer(_Answer):
    """Boxes are [x1, y1, x2, y2] pixels of the picture after EXIF rotation, half-open."""

    version: Literal[1] = 1
    model: ModelName
    request_id: str
    images: list[Picture]
    """In the order of the request."""
    timing_ms: float
    """From the request's first byte to this answer."""


class Category(_Answer):
    """A class."""

    id: int
    name: str


class ModelAnswer(ModelName):
    """The model and what may be asked of it."""

    preset: str
    categories: list[Category]
    masks: bool
    """Whether it predicts masks."""
    formats: list[str]
    limits: Limits


class ProblemAnswer(_Answer):
    """RFC 9457: what went wrong."""

    type: str = Field(examples=["about:blank"])
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["jpeg data ends early"])
    instance: str
    """The request id."""
    code: str = Field(examples=["truncated"])
    error: str


def detect_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the entries of a detection in any form, and of problems of these statuses."""
    item = {"type": "object"}
    features = {"type": {"const": "FeatureCollection"}, "features": {"type": "array"}}
    forms = [
        {"$ref": "#/components/schemas/DetectAnswer"},
        {"type": "array", "items": item, "title": "coco, labelstudio, roboflow of several"},
        {"title": "geojson", **item, "required": list(features), "properties": features},
        {"title": "roboflow", **item, "required": ["image", "predictions"]},
        {"title": "lists of a scene", **item, "required": ["results"]},
    ]
    found = {
        "description": "what was found, in the form asked for",
        "content": {"application/json": {"schema": {"anyOf": forms}}},
    }
    return {200: found, **problem_responses(*statuses)}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the entries of an OpenAPI description for problems of these statuses."""
    schema = {"$ref": "#/components/schemas/ProblemAnswer"}
    return {
        status: {
            "description": "a problem",
            "content": {"application/problem+json": {"schema": schema}},
        }
        for status in (401, 403, *statuses)
    }
