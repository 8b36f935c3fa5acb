"""The one form of results: command line, endpoint and labelling rows all follow this schema.

Boxes are [x1, y1, x2, y2] in pixels of the original picture after EXIF rotation, half-open: a width
is x2 - x1. (The official code's JSON has the same widths, as x2 - x1 + 1 of inclusive corners.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from d2det.inference.headers import DecodeReason
from d2det.structures import Category, Detections

SCHEMA_VERSION: Literal[1] = 1
"""Of the result file; grows when a reader of the old one would misread the new one."""
_BOX_DIGITS, _SCORE_DIGITS = 3, 6


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class MaskRow(_Row):
    """A mask as COCO run lengths, readable by pycocotools."""

    size: tuple[int, int]
    """Height and width of the picture."""
    counts: str
    """Compressed run lengths."""


class DetectionRow(_Row):
    """One detection."""

    bbox: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels of the original picture."""
    score: float
    label: str
    """Name of the class."""
    category_id: int
    """Id of the class in the data set the weights were trained on."""
    mask: MaskRow | None = None
    mask_score: float | None = None
    """How much the mask is to be trusted; it ranks masks and may pass 1."""


class ErrorRow(_Row):
    """Why a picture has no result."""

    reason: DecodeReason
    detail: str


class ImageRow(_Row):
    """One picture."""

    file_name: str
    width: int | None
    """Pixels after EXIF rotation; null where the picture could not be read."""
    height: int | None
    detections: tuple[DetectionRow, ...]
    """Best first."""
    error: ErrorRow | None = None


class ResultFile(_Row):
    """A result file."""

    version: Literal[1] = SCHEMA_VERSION
    images: tuple[ImageRow, ...]


def image_row(file_name: str, found: Detections, categories: Sequence[Category]) -> ImageRow:
    """Returns the row of a picture, its numbers rounded to a thousandth of a pixel."""
    columns: list[Iterable[Any]] = [
        found.boxes.double().numpy().round(_BOX_DIGITS).tolist(),
        found.scores.double().numpy().round(_SCORE_DIGITS).tolist(),
        found.labels.tolist(),
        [None] * len(found),
        [None] * len(found),
    ]
    if found.masks is not None and found.mask_scores is not None:
        columns[3] = (MaskRow(size=m["size"], counts=m["counts"].decode()) for m in found.masks)
        columns[4] = found.mask_scores.double().numpy().round(_SCORE_DIGITS).tolist()
    rows = tuple(
        DetectionRow(
            bbox=tuple(box),
            score=score,
            label=categories[label].name,
            category_id=categories[label].id,
            mask=mask,
            mask_score=mask_score,
        )
        for box, score, label, mask, mask_score in zip(*columns, strict=True)
    )
    height, width = found.size
    return ImageRow(file_name=file_name, width=width, height=height, detections=rows)


def error_row(file_name: str, reason: DecodeReason, detail: str) -> ImageRow:
    """Returns the row of a picture that could not be read."""
    error = ErrorRow(reason=reason, detail=detail)
    return ImageRow(file_name=file_name, width=None, height=None, detections=(), error=error)


def coco_results(images: Iterable[ImageRow], image_ids: Mapping[str, int]) -> list[dict[str, Any]]:
    """Returns COCO results, one dict a detection: bbox as [x, y, width, height].

    Masks come as `segmentation`; `score` stays that of the box, and `mask_score` is kept beside it.

    Args:
        images: rows of pictures; those that could not be read have no detections.
        image_ids: file name to image id, as the annotations have them.
    """
    rows = []
    for image in images:
        for found in image.detections:
            x1, y1, x2, y2 = found.bbox
            box = [x1, y1, round(x2 - x1, _BOX_DIGITS), round(y2 - y1, _BOX_DIGITS)]
            row: dict[str, Any] = {
                "image_id": image_ids[image.file_name],
                "category_id": found.category_id,
                "bbox": box,
                "score": found.score,
            }
            if found.mask is not None:
                row["segmentation"] = found.mask.model_dump(mode="json")
                row["mask_score"] = found.mask_score
            rows.append(row)
    return rows


class ResultWriter:
    """Writes a result file picture by picture, in flat memory; it appears when it is complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._separator = ""
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        if self._path.is_dir():
            raise ValueError(f"{self._path} is a folder, results go into a file")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._temporary.open("w", encoding="utf-8")
        self._file.write(f'{{"version":{SCHEMA_VERSION},"images":[')
        return self

    def write(self, row: ImageRow) -> None:
        """Appends the row of a picture."""
        assert self._file is not None
        self._file.write(f"{self._separator}\n{_dump(row)}")
        self._separator = ","

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._file is not None
        self._file.write("\n]}\n")
        self._file.close()
        if kind is None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink()


def _dump(row: ImageRow) -> str:
    """JSON without the fields that do not apply; sizes of unread pictures stay, as null."""
    if row.error is not None:
        return row.model_dump_json()
    return row.model_dump_json(exclude_none=True)
