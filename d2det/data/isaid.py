"""iSAID as its authors distribute it: DOTA's scenes, and two coloured pictures of labels for each.

    train/images/P0002.png
    train/images/P0002_instance_color_RGB.png      or train/Semantic_masks/images/...
    train/images/P0002_instance_id_RGB.png         or train/Instance_masks/images/...

The first shows the class of each pixel, the second the instance. `cut.cut_dataset` makes the usual
800-pixel patches of the scenes; ready-made patches with instancesonly_filtered_train.json are
COCO-format data.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2det.data.index import build_index
from d2det.data.masks import encode_crop
from d2det.data.samples import DetectionDataset
from d2det.inference.decode import DecodeError, read_header, read_image
from d2det.presets.categories import ISAID

logger = logging.getLogger(__name__)

_CLASS_COLOURS = (
    (0, 0, 63), (0, 63, 63), (0, 63, 0), (0, 63, 127), (0, 63, 191), (0, 63, 255), (0, 127, 63),
    (0, 127, 127), (0, 0, 127), (0, 0, 191), (0, 0, 255), (0, 191, 127), (0, 127, 191),
    (0, 127, 255), (0, 100, 155),
)  # fmt: skip
"""(R, G, B) of each class, in the order of the categories."""
_LEFT_OUT = ("P1527", "P1530")
"""Scenes that the authors' own tools leave out."""
_CLASSES, _INSTANCES = "_instance_color_RGB.png", "_instance_id_RGB.png"


@dataclass(frozen=True)
class _Scene:
    """What the labels of one scene say.

    size: (height, width).  labels, boxes, masks: of its instances; masks are run lengths.
    """

    size: tuple[int, int]
    labels: list[int]
    boxes: list[tuple[int, int, int, int]]
    masks: list[bytes]


def open_isaid(root: Path | str, split: str = "train", *, num_threads: int = 2) -> DetectionDataset:
    """Returns the scenes of one split, whole.

    Args:
        root: the folder that holds train and val.
        split: "train" or "val" (the labels of "test" are withheld).
        num_threads: scenes read at the same time; each needs some 40 bytes a pixel.

    Raises:
        ValueError: a label picture is missing, unreadable, or not as large as its scene.
    """
    folder = Path(root) / split
    paths = sorted(
        path
        for path in (folder / "images").glob("*.png")
        if not path.name.endswith((_CLASSES, _INSTANCES)) and path.stem not in _LEFT_OUT
    )
    if not paths:
        raise ValueError(f"no scenes *.png in {folder / 'images'}")
    with ThreadPoolExecutor(num_threads) as pool:
        scenes = list(pool.map(lambda path: _read_scene(folder, path), paths))
    labels = [label for scene in scenes for label in scene.labels]
    index = build_index(
        ISAID,
        file_names=[path.name for path in paths],
        image_ids=range(1, len(paths) + 1),
        image_sizes=[scene.size for scene in scenes],
        owners=[place for place, scene in enumerate(scenes) for _ in scene.labels],
        labels=labels,
        boxes=[box for scene in scenes for box in scene.boxes],
        is_ignored=[False] * len(labels),
        masks=[mask for scene in scenes for mask in scene.masks],
    )
    return DetectionDataset(index, folder / "images")


def _read_scene(folder: Path, path: Path) -> _Scene:
    with path.open("rb") as stream:
        size = read_header(stream).size
    classes = _read_codes(folder, "Semantic_masks", path.stem + _CLASSES, size)
    instances = _read_codes(folder, "Instance_masks", path.stem + _INSTANCES, size)
    labels = {int(_code(np.array(colour))): n for n, colour in enumerate(_CLASS_COLOURS)}
    scene = _Scene(size, [], [], [])
    for instance, rows, columns in _group_pixels(instances):
        codes, counts = np.unique(classes[rows, columns], return_counts=True)
        votes = {labels[c]: n for c, n in zip(codes.tolist(), counts, strict=True) if c in labels}
        if not votes:
            logger.warning("%s: instance %d has no class colour; left out", path, instance)
            continue
        y, x = int(rows.min()), int(columns.min())
        mask = np.zeros((int(rows.max()) - y + 1, int(columns.max()) - x + 1), np.bool_)
        mask[rows - y, columns - x] = True
        scene.labels.append(max(votes, key=lambda label: votes[label]))
        scene.boxes.append((x, y, x + mask.shape[1], y + mask.shape[0]))
        scene.masks.append(encode_crop(mask, x, y, *size))
    return scene


def _group_pixels(
    codes: NDArray[np.int64],
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Each code but 0 that occurs in (H, W) codes, with the rows and columns of its pixels."""
    place = np.flatnonzero(codes)
    found = codes.reshape(-1)[place]
    order = np.argsort(found, kind="stable")
    values, first = np.unique(found[order], return_index=True)
    for value, members in zip(values.tolist(), np.split(place[order], first[1:]), strict=True):
        rows, columns = np.divmod(members, codes.shape[1])
        yield value, rows, columns


def _read_codes(
    folder: Path, masks_folder: str, name: str, size: tuple[int, int]
) -> NDArray[np.int64]:
    """The label picture as (H, W) numbers, one for each colour; black is 0."""
    places = folder / "images" / name, folder / masks_folder / "images" / name
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ValueError(f"no labels {name} in {places[0].parent} or {places[1].parent}")
    try:
        colours = read_image(path)
    except DecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    if colours.shape[:2] != size:
        raise ValueError(f"{path} is {colours.shape[:2]} (h, w), its scene is {size}")
    return _code(colours)


def _code(colours: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """r + 256 g + 65536 b of (..., 3) colours."""
    codes: NDArray[np.int64] = colours.astype(np.int64) @ np.array([1, 256, 65536])
    return codes
