"""COCO 2017 folders and everything laid out like them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from d2det.data import files
from d2det.data.coco_json import read_coco
from d2det.data.samples import DetectionDataset
from d2det.structures import Category

_SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_ANNOTATION_PLACES = (
    "annotations/instances_{split}2017.json",
    "annotations/instances_{split}.json",
    "annotations/{split}.json",
    "instances_{split}2017.json",
    "instances_{split}.json",
    "{split}/_annotations.coco.json",
    "{split}.json",
    "{split}/instancesonly_filtered_{split}.json",
)
"""COCO 2017 first, then the habits of tools that write its format, and iSAID's patches."""
_IMAGE_PLACES = (
    "images/{name}",
    "{name}",
    "images",
    "../images/{name}",
    "../{name}",
    "../images",
    ".",
)
"""Folders of pictures relative to the annotation file; {name} is "train2017" of
instances_train2017.json."""


class CocoDataset(DetectionDataset):
    """Pictures with COCO-format annotations."""

    def __init__(
        self,
        images: Path | str,
        annotations: Path | str,
        *,
        masks: bool = True,
        categories: Sequence[Category] | None = None,
    ) -> None:
        """Reads the annotations; the pictures are opened one at a time, later.

        Args:
            images: folder (or URL) of the pictures.
            annotations: the annotation file.
            masks: read segmentations too (detectors without masks start faster without).
            categories: classes of the model the data must fit; else those of the file.
        """
        super().__init__(read_coco(annotations, masks=masks, categories=categories), images)


def open_coco(
    path: Path | str,
    split: str = "train",
    *,
    masks: bool = True,
    categories: Sequence[Category] | None = None,
) -> DetectionDataset:
    """Returns the data set at `path`: a COCO 2017 folder, one laid out like it, or a json file.

    Args:
        path: folder, or annotation file with the pictures near it.
        split: "train", "val" or "test"; no matter when `path` is a file.
        masks: read segmentations too (detectors without masks start faster without).
        categories: classes of the model the data must fit; else those of the file.

    Raises:
        ValueError: annotations or pictures are not found, or the annotations are broken.
    """
    annotations = find_annotations(path, split)
    index = read_coco(annotations, masks=masks, categories=categories)
    return DetectionDataset(index, find_images(annotations, index.file_names[0]))


def find_annotations(path: Path | str, split: str) -> str:
    """Returns the annotation file of `split` ("train", "val" or "test") at `path`.

    Raises:
        ValueError: there is none; the message says where it was looked for.
    """
    if str(path).endswith(".json"):
        return str(path)
    tried = []
    for name in _SPLIT_NAMES.get(split, (split,)):
        for place in _ANNOTATION_PLACES:
            tried.append(place.format(split=name))
            if files.exists(candidate := files.join(path, tried[-1])):
                return candidate
    raise ValueError(f"no annotations of split {split!r} in {path}; looked for {', '.join(tried)}")


def find_images(annotations: Path | str, file_name: str) -> str:
    """Returns the folder near the file `annotations` in which the picture `file_name` lies.

    Raises:
        ValueError: there is none; the message says where it was looked for.
    """
    folder, _, name = str(annotations).rpartition("/")
    name = name.removesuffix(".json").removeprefix("instances_")
    tried = [files.join(folder or ".", place.format(name=name)) for place in _IMAGE_PLACES]
    for candidate in tried:
        if files.exists(files.join(candidate, file_name)):
            return candidate
    raise ValueError(f"picture {file_name!r} of {annotations} is in none of {', '.join(tried)}")
