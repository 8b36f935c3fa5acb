"""Made scenes as a COCO-format folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2

from d2det import rng
from d2det.data.export import write_coco
from d2det.data.index import DatasetIndex, build_index
from d2det.data.masks import encode_crop
from d2det.data.synthetic.scene import CATEGORIES, Scene, SceneObject

_JPEG_QUALITY = 92


def write_dataset(
    folder: Path | str,
    *,
    split: str,
    num_images: int,
    size: tuple[int, int] = (512, 512),
    seed: int = 0,
    pixels_per_metre: float = 9.0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes pictures and annotations; returns the annotation file. Same arguments, same bytes.

    The folder is laid out like COCO: `annotations/instances_SPLIT.json` and `SPLIT/000001.jpg`.
    Splits of one seed share no scene.

    Args:
        folder: where to.
        split: "train", "val" or any other name.
        num_images: pictures to write.
        size: (height, width) of each.
        seed: of all of them.
        pixels_per_metre: scale; a car is 4.5 m long.
        progress: called with (pictures done, pictures in all).
    """
    folder = Path(folder)
    (folder / split).mkdir(parents=True, exist_ok=True)
    height, width = size
    names = [f"{number:06d}.jpg" for number in range(1, num_images + 1)]
    found: list[list[SceneObject]] = []
    for number, name in enumerate(names, start=1):
        scene = Scene(rng.key(seed, "scene", split, number), width, height, pixels_per_metre)
        picture, objects = scene.whole()
        found.append(objects)
        quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        cv2.imwrite(str(folder / split / name), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), quality)
        if progress is not None:
            progress(number, num_images)
    path = folder / "annotations" / f"instances_{split}.json"
    write_coco(scene_index(names, [size] * num_images, found), path)
    return path


def scene_index(
    file_names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    objects: Sequence[Sequence[SceneObject]],
) -> DatasetIndex:
    """Returns the index of N scenes.

    Args:
        file_names: of the pictures; image ids count from 1.
        sizes: (height, width) of each.
        objects: of each.
    """
    owners = [place for place, members in enumerate(objects) for _ in members]
    members = [member for scene in objects for member in scene]
    boxes = []
    masks = []
    for owner, member in zip(owners, members, strict=True):
        height, width = member.mask.shape
        boxes.append((member.x, member.y, member.x + width, member.y + height))
        masks.append(encode_crop(member.mask, member.x, member.y, *sizes[owner]))
    return build_index(
        CATEGORIES,
        file_names=file_names,
        image_ids=range(1, len(file_names) + 1),
        image_sizes=sizes,
        owners=owners,
        labels=[member.label for member in members],
        boxes=boxes,
        is_ignored=[False] * len(members),
        masks=masks,
    )
