"""What the demonstration works on: made aerial scenes, or a COCO-format folder of one's own."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from d2det import rng
from d2det.data.synthetic import Scene, write_dataset
from d2det.inference.decode import read_image

PIXELS_PER_METRE = 6.0
SIDE_PX = 320
"""Side of the made training pictures: 53 m, in which a car is 27 px long."""
TRAIN_PICTURES, VAL_PICTURES = 480, 48
SCENE_PX = (2304, 3072)
"""Height and width of the large scene that is labelled."""
LAKE_PICTURES = 40
"""Validation pictures that lie beside the scene in the folder that is labelled."""
MADE_PLACE = ("EPSG:32632", 500_000.0, 5_300_000.0)
"""Where the made scene pretends to be: so its labels open on a map."""
_VAL_EVERY = 5
"""Of a data set in one piece, every fifth picture is kept for validation."""
_TRAIN_WORDS, _VAL_WORDS = ("train",), ("val", "valid", "test")


@dataclass(frozen=True)
class Split:
    """One part of a data set: its annotation file and the folder of its pictures."""

    annotations: Path
    images: Path

    def content(self) -> dict[str, Any]:
        """Returns the annotation file."""
        return dict(json.loads(self.annotations.read_text()))


@dataclass(frozen=True)
class DemoData:
    """train, val: what to learn from, and what to score on.  lake: the folder to be labelled."""

    train: Split
    val: Split
    lake: Path


def built_in(folder: Path) -> DemoData:
    """Draws the made scenes below `folder`, or finds them there from last time."""
    splits = []
    for split, count in (("train", TRAIN_PICTURES), ("val", VAL_PICTURES)):
        path = folder / "annotations" / f"instances_{split}.json"
        if not path.exists():  # it is written last
            size = (SIDE_PX, SIDE_PX)
            write_dataset(
                folder, split=split, num_images=count, size=size, pixels_per_metre=PIXELS_PER_METRE
            )
        splits.append(Split(path, folder / split))
    data = DemoData(splits[0], splits[1], folder / "lake")
    _fill_lake(data, _made_scene())
    return data


def of_folder(source: Path, folder: Path) -> DemoData:
    """Finds training and validation parts in a COCO-format folder, and makes a lake of the latter.

    Files named train and val, as COCO, Roboflow or CVAT leave them, are taken as they are; where
    there is one annotation file alone, every fifth picture is kept for validation.

    Raises:
        ValueError: nothing there can be used; the message says what was looked for.
    """
    files = [path for path in sorted(source.rglob("*.json")) if _is_coco(path)]
    if not files:
        raise ValueError(f"{source} holds no COCO annotations (a .json with images, annotations)")
    train = next((path for path in files if _speaks_of(path, source, _TRAIN_WORDS)), None)
    val = next((path for path in files if _speaks_of(path, source, _VAL_WORDS)), None)
    if train is not None and val is not None:
        splits = [Split(path, _images_of(path, source, beside=path)) for path in (train, val)]
    else:
        whole = train or files[0]
        images = _images_of(whole, source, beside=whole)
        splits = [Split(path, images) for path in _split(whole, folder)]
    data = DemoData(splits[0], splits[1], folder / "lake")
    _fill_lake(data, _mosaic(data.val))
    return data


def _fill_lake(data: DemoData, scene: NDArray[np.uint8]) -> None:
    """Validation pictures, a large scene, and a damaged file, as lakes have them."""
    done = data.lake / "scene.tif"
    if done.exists():
        return
    (data.lake / "flight-1").mkdir(parents=True, exist_ok=True)
    names = [image["file_name"] for image in data.val.content()["images"][:LAKE_PICTURES]]
    for name in names:
        shutil.copyfile(data.val.images / name, data.lake / "flight-1" / Path(name).name)
    sound = (data.val.images / names[0]).read_bytes()
    (data.lake / "damaged.jpg").write_bytes(sound[: len(sound) // 2])
    _write_scene(scene, done)


def _made_scene() -> NDArray[np.uint8]:
    height, width = SCENE_PX
    return Scene(rng.key(0, "scene", "large"), width, height, PIXELS_PER_METRE).whole()[0]


def _mosaic(split: Split, *, columns: int = 4, rows: int = 3) -> NDArray[np.uint8]:
    """One large picture of up to a dozen of a split's, each in a cell of its own."""
    names = [image["file_name"] for image in split.content()["images"][: columns * rows]]
    pictures = [read_image(split.images / name) for name in names]
    height = max(picture.shape[0] for picture in pictures)
    width = max(picture.shape[1] for picture in pictures)
    canvas = np.full((rows * height, columns * width, 3), 114, np.uint8)
    for place, picture in enumerate(pictures):
        y, x = place // columns * height, place % columns * width
        canvas[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return canvas


def _write_scene(scene: NDArray[np.uint8], path: Path) -> None:
    """Writes a GeoTIFF where rasterio is installed, a plain TIFF elsewhere; whole or not at all."""
    temporary = path.with_suffix(".part.tif")
    try:
        import rasterio
        from rasterio.transform import from_origin
    except ImportError:
        cv2.imwrite(str(temporary), scene[..., ::-1])
    else:
        crs, west, north = MADE_PLACE
        with rasterio.open(
            temporary,
            "w",
            driver="GTiff",
            height=scene.shape[0],
            width=scene.shape[1],
            count=3,
            dtype="uint8",
            crs=crs,
            transform=from_origin(west, north, 1 / PIXELS_PER_METRE, 1 / PIXELS_PER_METRE),
            tiled=True,
            compress="deflate",
        ) as file:
            file.write(scene.transpose(2, 0, 1))
    temporary.replace(path)


def _is_coco(path: Path) -> bool:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()


def _speaks_of(path: Path, root: Path, words: tuple[str, ...]) -> bool:
    """Whether the name of a file, or of the folder it lies in, has one of the words."""
    parts = (path.stem, *path.relative_to(root).parts[:-1])
    return any(word in part.lower() for part in parts for word in words)


def _split(path: Path, folder: Path) -> tuple[Path, Path]:
    content = json.loads(path.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    for is_val in (False, True):
        images = [
            image for i, image in enumerate(content["images"]) if (i % _VAL_EVERY == 0) == is_val
        ]
        ids = {image["id"] for image in images}
        annotations = [a for a in content["annotations"] if a["image_id"] in ids]
        part = {**content, "images": images, "annotations": annotations}
        (folder / f"instances_{'val' if is_val else 'train'}.json").write_text(json.dumps(part))
    return folder / "instances_train.json", folder / "instances_val.json"


def _images_of(annotations: Path, source: Path, *, beside: Path) -> Path:
    """The folder below `source` in which the pictures of an annotation file are.

    Parts often use the same file names, so a folder that is named like the annotations comes first.
    """
    names = [image["file_name"] for image in json.loads(annotations.read_text())["images"]]
    if not names:
        raise ValueError(f"{annotations} names no pictures")
    folders = [folder for folder in sorted(source.rglob("*")) if folder.is_dir()]
    alike = [folder for folder in folders if folder.name.lower() in beside.stem.lower()]
    near = [beside.parent, beside.parent / "images", source, source / "images"]
    for folder in (*alike, *near, *folders):
        if all((folder / name).is_file() for name in names):
            return folder
    raise ValueError(
        f"{source}: no folder below it holds {names[0]} and the other pictures that "
        f"{annotations.name} names"
    )
