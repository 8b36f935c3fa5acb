"""Made cases of broken annotations, and what must become of each.

A data set of three sound pictures is written and then spoilt. Either the check refuses it (an
error of the stated kind), or it says what it works around (a warning) and training goes on, or
there is nothing to say.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

Document = dict[str, Any]
NAN, INFINITE, HUGE = float("nan"), float("inf"), 10**400


@dataclass(frozen=True)
class Case:
    """One way to break the data.

    spoil: changes the document and the folder of pictures; may return what to write instead.
    refused: kind of the error, or None where training goes on.
    warned: kind of the warning, if any.
    named: what the message must name besides the file (image id, annotation id, value).
    """

    name: str
    spoil: Callable[[Document, Path], Document | str | None]
    refused: str | None = None
    warned: str | None = None
    named: tuple[str, ...] = ()


def write(case: Case, folder: Path) -> Path:
    """Writes the spoilt data set; returns its annotation file."""
    images = folder / "images"
    images.mkdir(parents=True)
    document = _sound(images)
    result = case.spoil(document, images)
    path = folder / "instances_train.json"
    path.write_text(result if isinstance(result, str) else json.dumps(result or document))
    return path


def _sound(images: Path) -> Document:
    """Pictures 10, 20 and 30 of 96 x 64 pixels, annotations 1 to 4, classes 2 and 5."""
    entries = []
    for image_id in (10, 20, 30):
        pixels = np.random.default_rng(image_id).integers(0, 256, (64, 96, 3), np.uint8)
        cv2.imwrite(str(images / f"{image_id}.jpg"), pixels)
        entry = {"id": image_id, "file_name": f"{image_id}.jpg", "height": 64, "width": 96}
        entries.append(entry)
    annotations = []
    for number, image_id in enumerate((10, 10, 20, 30), start=1):
        x, y, w, h = 8 * number, 4 * number, 30, 24
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotations.append(
            {
                "id": number,
                "image_id": image_id,
                "category_id": 2 + 3 * (number % 2),
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [polygon],
            }
        )
    categories = [{"id": 2, "name": "car"}, {"id": 5, "name": "plane"}]
    return {"images": entries, "annotations": annotations, "categories": categories}


def _annotation(**changes: Any) -> Callable[[Document, Path], None]:
    """Changes annotation 3, the only one of image 20."""

    def spoil(document: Document, images: Path) -> None:
        document["annotations"][2].update(changes)

    return spoil


def _image(**changes: Any) -> Callable[[Document, Path], None]:
    """Changes the entry of image 20."""

    def spoil(document: Document, images: Path) -> None:
        document["images"][1].update(changes)

    return spoil


def _without(group: str, place: int, key: str) -> Callable[[Document, Path], None]:
    def spoil(document: Document, images: Path) -> None:
        del document[group][place][key]

    return spoil


def _each(group: str, **changes: Any) -> Callable[[Document, Path], None]:
    def spoil(document: Document, images: Path) -> None:
        for entry in document[group]:
            entry.update(changes)

    return spoil


def _with(group: str, entry: Any) -> Callable[[Document, Path], None]:
    def spoil(document: Document, images: Path) -> None:
        document[group].append(entry)

    return spoil


def _document(**changes: Any) -> Callable[[Document, Path], Document]:
    return lambda document, images: document | changes


def _text(text: str) -> Callable[[Document, Path], str]:
    return lambda document, images: text


def _file(content: Callable[[bytes], bytes] | None) -> Callable[[Document, Path], None]:
    """Changes the file of image 20; None removes it."""

    def spoil(document: Document, images: Path) -> None:
        path = images / "20.jpg"
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content(path.read_bytes()))

    return spoil


def _renumber(document: Document, images: Path) -> None:
    """Category ids with gaps and out of order, image ids far apart: all legal."""
    document["categories"] = [{"id": 900, "name": "car"}, {"id": 7, "name": "plane"}]
    for annotation in document["annotations"]:
        annotation["category_id"] = {2: 900, 5: 7}[annotation["category_id"]]
        annotation["image_id"] *= 10**9
    for image in document["images"]:
        image["id"] *= 10**9


def _swap_sizes(document: Document, images: Path) -> None:
    for image in document["images"]:
        image["height"], image["width"] = image["width"], image["height"]
    for annotation in document["annotations"]:
        annotation["segmentation"] = []


_THIRD = ("image 20", "annotation 3")
_RLE = {"size": [64, 96], "counts": [64 * 16 + 8, 40, 64 * 80 - 48]}
CASES = (
    # Boxes
    Case("box with a negative width", _annotation(bbox=[40, 9, -5, 9]), "bad box", None, _THIRD),
    Case("box with a negative height", _annotation(bbox=[40, 9, 5, -9]), "bad box", None, _THIRD),
    Case("box with nan", _annotation(bbox=[4, NAN, 5, 9]), "bad box", None, (*_THIRD, "nan")),
    Case("box with inf", _annotation(bbox=[4, 4, INFINITE, 9]), "bad box", None, (*_THIRD, "inf")),
    Case("box at 1e12", _annotation(bbox=[1e12, 4, 5, 9]), "bad box", None, (*_THIRD, "1000000")),
    Case("box at 1e400", _annotation(bbox=[HUGE, 4, 5, 9]), "bad box", None, (*_THIRD, "inf")),
    Case("corner at 1e400", _annotation(segmentation=[[HUGE] * 6]), "bad segm", None, _THIRD),
    Case("annotation id 1e400", _annotation(id=HUGE), "bad annotation", None, ("inf",)),
    Case("image id 1e400", _image(id=HUGE), "bad image", None, ("20.jpg", "inf")),
    Case("image id beyond 64 bits", _image(id=2**63), "bad image", None, ("20.jpg", "9.22")),
    Case("width beyond 64 bits", _image(width=2**63), "bad image size", None, ("image 20",)),
    Case("category id 1e400", _with("categories", {"id": HUGE, "name": "x"}), "bad category"),
    Case("annotation id of 63 bits", _annotation(id=2**63 - 1)),
    Case("endless file name", _image(file_name="x" * 5000), "missing picture", None, ("image 20",)),
    Case("box as text", _annotation(bbox="4 4 5 9"), "bad box", None, (*_THIRD, "4 4 5 9")),
    Case("box of text", _annotation(bbox=["4", "4", "5", "9"]), "bad box", None, (*_THIRD, "'4'")),
    Case("box of three", _annotation(bbox=[4, 4, 9]), "bad box", None, (*_THIRD, "[4, 4, 9]")),
    Case("box null", _annotation(bbox=None), "bad box", None, _THIRD),
    Case("box missing", _without("annotations", 2, "bbox"), "bad box", None, _THIRD),
    Case("box without width", _annotation(bbox=[40, 9, 0, 9]), None, "empty box", _THIRD),
    Case("box without area", _annotation(bbox=[40, 9, 0, 0]), None, "empty box", _THIRD),
    Case("box below a pixel", _annotation(bbox=[40, 9, 0.2, 9]), None, "box below", _THIRD),
    Case("box outside", _annotation(bbox=[400, 9, 20, 9]), None, "box outside", _THIRD),
    Case("box left of the picture", _annotation(bbox=[-40, 9, 20, 9]), None, "outside", _THIRD),
    Case("box half outside", _annotation(bbox=[80, 30, 99, 99]), None, "box leaves", _THIRD),
    Case("box over everything", _annotation(bbox=[-500, -500, 2000, 2000]), None, "leaves", _THIRD),
    Case("object twice", _annotation(id=4), "duplicate annotation id", None, ("annotation 4",)),
    Case(
        "same box twice",
        _with(
            "annotations",
            {
                "id": 9,
                "image_id": 20,
                "category_id": 5,
                "bbox": [24, 12, 30, 24],
                "iscrowd": 0,
                "segmentation": [[24, 12, 54, 12, 54, 36]],
            },
        ),
        None,
        "repeated object",
        ("image 20", "annotation 9"),
    ),
    # Segmentations
    Case(
        "polygon of two points", _annotation(segmentation=[[1, 1, 5, 5]]), "bad segm", None, _THIRD
    ),
    Case("polygon of odd length", _annotation(segmentation=[[1] * 7]), "bad segm", None, _THIRD),
    Case(
        "polygon with nan",
        _annotation(segmentation=[[1, 1, 9, 1, NAN, 9]]),
        "bad segm",
        None,
        _THIRD,
    ),
    Case(
        "polygon at 1e12",
        _annotation(segmentation=[[1, 1, 1e12, 1, 9, 9]]),
        "bad segm",
        None,
        _THIRD,
    ),
    Case(
        "polygon not nested", _annotation(segmentation=[1, 1, 9, 1, 9, 9]), "bad segm", None, _THIRD
    ),
    Case("segmentation as text", _annotation(segmentation="x"), "bad segm", None, _THIRD),
    Case("segmentation as a number", _annotation(segmentation=1), "bad segm", None, _THIRD),
    Case(
        "run lengths of another size",
        _annotation(segmentation=_RLE | {"size": [96, 64]}),
        "bad segm",
        None,
        _THIRD,
    ),
    Case(
        "run lengths too short",
        _annotation(segmentation=_RLE | {"counts": [5, 6]}),
        "bad segm",
        None,
        _THIRD,
    ),
    Case(
        "run lengths negative",
        _annotation(segmentation=_RLE | {"counts": [-5, 6149]}),
        "bad segm",
        None,
        _THIRD,
    ),
    Case(
        "run lengths garbled",
        _annotation(segmentation=_RLE | {"counts": "\u00ff\u00fe"}),
        "bad segm",
        None,
        _THIRD,
    ),
    Case(
        "polygon outside",
        _annotation(segmentation=[[500, 1, 600, 1, 600, 60]]),
        None,
        "mask elsewhere",
        _THIRD,
    ),
    Case(
        "polygon without area",
        _annotation(segmentation=[[30, 20, 30, 20, 30, 20]]),
        None,
        "mask elsewhere",
        _THIRD,
    ),
    Case("one object without mask", _annotation(segmentation=[]), "mask missing", None, _THIRD),
    Case("no masks at all", _each("annotations", segmentation="[]"), "no masks"),
    Case("run lengths", _annotation(segmentation=_RLE, bbox=[16, 8, 1, 40])),
    # Annotations
    Case("unknown class", _annotation(category_id=77), "unknown class", None, (*_THIRD, "77")),
    Case("class missing", _without("annotations", 2, "category_id"), "unknown class", None, _THIRD),
    Case("class as text", _annotation(category_id="2"), "unknown class", None, (*_THIRD, "'2'")),
    Case("class as a list", _annotation(category_id=[2]), "unknown class", None, _THIRD),
    Case("unknown image", _annotation(image_id=77), "unknown image", None, ("77", "annotation 3")),
    Case("image id as text", _annotation(image_id="20"), "unknown image", None, ("'20'",)),
    Case(
        "annotation id missing", _without("annotations", 2, "id"), "bad annotation", None, ("None",)
    ),
    Case("annotation id as text", _annotation(id="3"), "bad annotation", None, ("'3'",)),
    Case("annotation null", _with("annotations", None), "bad annotation", None, ("None",)),
    Case("annotation a list", _with("annotations", [1, 2]), "bad annotation", None, ("[1, 2]",)),
    Case("iscrowd 7", _annotation(iscrowd=7), "bad annotation", None, (*_THIRD, "7")),
    Case("iscrowd missing", _without("annotations", 2, "iscrowd")),
    Case("one picture of crowds", _annotation(iscrowd=1), None, "only crowds", ("image 20",)),
    Case("only crowds", _each("annotations", iscrowd=1), "nothing to learn"),
    Case("no object in a picture", _annotation(image_id=30), None, "no object", ("image 20",)),
    Case("no object at all", _document(annotations=[]), "nothing to learn"),
    Case("all boxes empty", _each("annotations", bbox=[5, 5, 0, 0]), "nothing to learn"),
    # Images
    Case("image id twice", _image(id=10), "duplicate image id", None, ("image 10", "20.jpg")),
    Case(
        "picture listed twice",
        _image(file_name="10.jpg"),
        "listed twice",
        None,
        ("image 20", "10.jpg"),
    ),
    Case("image id missing", _without("images", 1, "id"), "bad image", None, ("20.jpg",)),
    Case("own id of an image as text", _image(id="20"), "bad image", None, ("'20'", "20.jpg")),
    Case("file name missing", _without("images", 1, "file_name"), "bad image", None, ("image 20",)),
    Case("height missing", _without("images", 1, "height"), "bad image size", None, ("image 20",)),
    Case("width zero", _image(width=0), "bad image size", None, ("image 20", "20.jpg")),
    Case("height negative", _image(height=-64), "bad image size", None, ("image 20", "-64")),
    Case("width as text", _image(width="96"), "bad image size", None, ("image 20", "'96'")),
    Case("image null", _with("images", None), "bad image", None, ("None",)),
    # Categories
    Case(
        "category id twice",
        _with("categories", {"id": 2, "name": "bus"}),
        "duplicate category",
        None,
        ("'car'", "'bus'"),
    ),
    Case(
        "category name twice",
        _with("categories", {"id": 9, "name": "car"}),
        None,
        "duplicate category name",
        ("'car'",),
    ),
    Case("category without a name", _with("categories", {"id": 9}), "bad category", None, ("9",)),
    Case("category id as text", _with("categories", {"id": "9", "name": "x"}), "bad category"),
    Case("category null", _with("categories", None), "bad category"),
    Case(
        "class without objects",
        _with("categories", {"id": 9, "name": "bus"}),
        None,
        "class without objects",
        ("'bus'",),
    ),
    Case("ids with gaps", _renumber),
    # The document
    Case("not JSON", _text("<xml/>"), "not JSON"),
    Case("JSON cut off", _text('{"images": [{"id": 1, '), "not JSON"),
    Case("empty file", _text(""), "not JSON", None, ("empty",)),
    Case("nested without end", _text("[" * 200_000), "not JSON"),
    Case("a list", _text("[]"), "not COCO format", None, ("list",)),
    Case("an empty object", _text("{}"), "not COCO format", None, ('"images"',)),
    Case(
        "annotations missing",
        _text('{"images": [], "categories": []}'),
        "not COCO",
        None,
        ('"annotations"',),
    ),
    Case("annotations an object", _document(annotations={}), "not COCO", None, ('"annotations"',)),
    Case("no images", _document(images=[]), "empty", None, ('"images"',)),
    Case("no categories", _document(categories=[]), "empty", None, ('"categories"',)),
    # Pictures
    Case("picture missing", _file(None), "missing picture", None, ("20.jpg", "image 20")),
    Case("picture empty", _file(lambda data: b""), "unreadable", None, ("20.jpg", "image 20")),
    Case(
        "picture cut off",
        _file(lambda data: data[: len(data) // 2]),
        "unreadable",
        None,
        ("20.jpg", "image 20", "truncated"),
    ),
    Case(
        "picture not a picture",
        _file(lambda data: b"text" * 99),
        "unreadable",
        None,
        ("20.jpg", "not_image"),
    ),
    Case(
        "size other than the picture's",
        _image(width=97),
        "wrong picture size",
        None,
        ("20.jpg", "image 20", "97"),
    ),
    Case("height and width swapped", _swap_sizes, "wrong picture size", None, ("EXIF",)),
)
"""All cases; names are unique."""
