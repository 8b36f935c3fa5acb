"""COCO-format annotation files as a `DatasetIndex`.

Reading is checking: whatever cannot be given a meaning is collected, with its file, image id,
annotation id and reason, and refused together. What merely cannot be trained on (empty boxes,
boxes outside the picture) is read as it stands; `check` tells of it and training drops it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2det.data import files
from d2det.data.index import DatasetIndex, build_index
from d2det.data.masks import MAX_COORDINATE, encode_segmentation
from d2det.data.problems import Findings, Problem, Report
from d2det.data.rows import parse_json
from d2det.structures import Category

_Images = dict[int, tuple[str, tuple[int, int]]]
"""File name and (height, width) by image id, in the order of the file."""


def read_coco(
    path: Path | str, *, masks: bool = True, categories: Sequence[Category] | None = None
) -> DatasetIndex:
    """Returns the annotations in the file at `path`.

    Raises:
        ValueError: something in it has no meaning; the message names all such places.
    """
    index, problems = parse_coco(path, masks=masks, categories=categories)
    Report(tuple(problems)).raise_if_bad()
    assert index is not None
    return index


def parse_coco(
    path: Path | str, *, masks: bool = True, categories: Sequence[Category] | None = None
) -> tuple[DatasetIndex | None, list[Problem]]:
    """Returns what could be read of the file at `path`, and what is wrong with the rest."""
    findings = Findings(str(path))
    document = _load(path, findings)
    if document is None:
        return None, findings.problems
    labels, found = _read_categories(document["categories"], findings)
    if categories is not None:
        labels = _fit_categories(found, categories, findings)
    images = _read_images(document["images"], findings)
    reader = _AnnotationReader(images, labels, masks, findings)
    for entry in document["annotations"]:
        reader.read(entry)
    index = build_index(
        categories if categories is not None else found,
        file_names=[image[0] for image in images.values()],
        image_ids=list(images),
        image_sizes=[image[1] for image in images.values()],
        **reader.columns,
    )
    return index, findings.problems


def _load(path: Path | str, findings: Findings) -> dict[str, Any] | None:
    """The document with its three lists, or None and the reason noted."""
    try:
        text = files.read_bytes(path)
    except OSError as error:
        findings.error("cannot be read", error.strerror or str(error))
        return None
    try:
        document = parse_json(text)
    except ValueError as error:
        findings.error("not JSON", f"{error}" if text.strip() else "the file is empty")
        return None
    if not isinstance(document, dict):
        findings.error("not COCO format", f"holds a {type(document).__name__}, not an object")
        return None
    lists = {key: document.get(key) for key in ("images", "annotations", "categories")}
    for key, value in lists.items():
        if not isinstance(value, list):
            what = "is missing" if key not in document else f"is a {type(value).__name__}"
            findings.error("not COCO format", f'the list "{key}" {what}')
        elif not value and key != "annotations":
            findings.error("empty", f'the list "{key}" has no entries')
    return None if findings.problems else document


def _read_categories(
    entries: list[Any], findings: Findings
) -> tuple[dict[int, int], tuple[Category, ...]]:
    """Labels by category id, and the classes in ascending order of their ids."""
    names: dict[int, str] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            findings.error("bad category", f"{entry!r:.60} is not an object")
            continue
        category, name = entry.get("id"), entry.get("name")
        if type(category) is not int or not isinstance(name, str) or not name:
            findings.error("bad category", f"id {category!r:.40}, name {name!r:.40}")
        elif category in names:
            findings.error(
                "duplicate category", f"id {category} is {names[category]!r} and {name!r}"
            )
        else:
            if name in names.values():
                findings.warning("duplicate category name", f"{name!r} has more than one id")
            names[category] = name
    ids = sorted(names)
    return dict(zip(ids, range(len(ids)), strict=True)), tuple(Category(i, names[i]) for i in ids)


def _fit_categories(
    found: Sequence[Category], wanted: Sequence[Category], findings: Findings
) -> dict[int, int]:
    """Labels by category id in a model's own classes; `found` must be among them."""
    labels = {category: label for label, category in enumerate(wanted)}
    for category in found:
        if category not in labels:
            findings.error("foreign category", f"{category} is not among the model's classes")
    return {category.id: label for category, label in labels.items()}


def _read_images(entries: list[Any], findings: Findings) -> _Images:
    images: _Images = {}
    owners: dict[str, int] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            findings.error("bad image", f"{entry!r:.60} is not an object")
            continue
        image_id, name = entry.get("id"), entry.get("file_name")
        size = (entry.get("height"), entry.get("width"))
        if type(image_id) is not int:
            findings.error("bad image", f"id {image_id!r:.40} of {name!r:.80} is not a number")
        elif image_id in images:
            findings.error("duplicate image id", f"{images[image_id][0]!r} and {name!r}", image_id)
        elif not isinstance(name, str) or not name:
            findings.error("bad image", f"file_name is {name!r:.80}", image_id)
        elif any(type(side) is not int or side < 1 for side in size):
            findings.error("bad image size", f"height, width of {name!r} are {size}", image_id)
        elif name in owners:
            findings.error("image listed twice", f"{name!r} is image {owners[name]} too", image_id)
        else:
            images[image_id] = (name, size)  # type: ignore[assignment]
            owners[name] = image_id
    return images


class _RefusedError(ValueError):
    """Why one annotation cannot be used."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class _AnnotationReader:
    """Turns annotation after annotation into the columns of `build_index`."""

    def __init__(
        self, images: _Images, labels: dict[int, int], masks: bool, findings: Findings
    ) -> None:
        self.columns: dict[str, Any] = {
            "annotation_ids": [],
            "owners": [],
            "labels": [],
            "boxes": [],
            "is_ignored": [],
            "masks": [] if masks else None,
        }
        self._places = {image_id: place for place, image_id in enumerate(images)}
        self._sizes = [size for _, size in images.values()]
        self._labels = labels
        self._findings = findings
        self._seen: set[int] = set()

    def read(self, entry: Any) -> None:
        """Adds the annotation to the columns, or notes why it cannot be used."""
        if not isinstance(entry, dict):
            self._findings.error("bad annotation", f"{entry!r:.60} is not an object")
            return
        try:
            self._check_id(entry.get("id"))
            place = self._place(entry.get("image_id"))
            box = _read_box(entry)
            label = self._label(entry)
            is_crowd = _read_crowd(entry.get("iscrowd", 0))
            if self.columns["masks"] is not None:
                self.columns["masks"].append(self._mask(entry.get("segmentation"), place))
        except _RefusedError as error:
            ids = entry.get("image_id"), entry.get("id")
            self._findings.error(error.kind, str(error), *ids)
            return
        self.columns["annotation_ids"].append(entry["id"])
        self.columns["owners"].append(place)
        self.columns["labels"].append(label)
        self.columns["boxes"].append(box)
        self.columns["is_ignored"].append(is_crowd)

    def _check_id(self, annotation_id: Any) -> None:
        if type(annotation_id) is not int:
            raise _RefusedError("bad annotation", f"id {annotation_id!r:.40} is not a whole number")
        if annotation_id in self._seen:
            raise _RefusedError(
                "duplicate annotation id", "an annotation before it has the same id"
            )
        self._seen.add(annotation_id)

    def _place(self, image_id: Any) -> int:
        if type(image_id) is not int or image_id not in self._places:
            raise _RefusedError("unknown image", f"image_id {image_id!r:.40} is no image's id")
        return self._places[image_id]

    def _label(self, entry: dict[str, Any]) -> int:
        category = entry.get("category_id")
        if type(category) is not int or category not in self._labels:
            raise _RefusedError(
                "unknown class", f"category_id {category!r:.40} is no category's id"
            )
        return self._labels[category]

    def _mask(self, segmentation: Any, place: int) -> bytes:
        try:
            return encode_segmentation(segmentation, *self._sizes[place])
        except ValueError as error:
            raise _RefusedError("bad segmentation", str(error)) from error


def _read_box(entry: dict[str, Any]) -> tuple[float, float, float, float]:
    """The half-open (x1, y1, x2, y2) of a COCO (x, y, width, height)."""
    bbox = entry.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise _RefusedError("bad box", f"bbox is {bbox!r:.60}, not [x, y, width, height]")
    for value in bbox:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise _RefusedError("bad box", f"bbox {bbox} holds {value!r:.40}, not a finite number")
        if abs(value) > MAX_COORDINATE:
            raise _RefusedError("bad box", f"bbox {bbox} is far outside any picture")
    x, y, width, height = bbox
    if width < 0 or height < 0:
        raise _RefusedError("bad box", f"bbox {bbox} has a negative width or height")
    return x, y, x + width, y + height


def _read_crowd(value: Any) -> bool:
    if value not in (0, 1):
        raise _RefusedError("bad annotation", f"iscrowd is {value!r:.40}, neither 0 nor 1")
    return bool(value)
