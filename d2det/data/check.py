"""What is wrong with a data set, found before the first training step.

Errors: what has no meaning (NaN, unknown class, a missing picture ...). Warnings: what training
drops, cuts or does without, so that nobody wonders later where objects went.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from d2det.boxes import elementwise_iou
from d2det.data import files
from d2det.data.coco import find_annotations, find_images
from d2det.data.coco_json import parse_coco
from d2det.data.index import DatasetIndex
from d2det.data.masks import mask_bounds
from d2det.data.problems import Findings, Problem, Report
from d2det.data.samples import DetectionDataset
from d2det.data.transforms import trainable
from d2det.inference.decode import DecodeError, decode_image, read_header
from d2det.structures import Category

MAX_OVERHANG_PX = 2.0
"""Boxes that leave the picture by less are rounding, which COCO itself has a lot of."""
MIN_MASK_IOU = 0.3
"""Masks whose bounding box agrees less with the object's box are suspicious: often the box was
written as two corners, or the polygon belongs to another object."""

_MASKS_AT_ONCE = 8192
"""Bounds the memory of looking at all masks together, which is faster than one by one."""


def check_dataset(
    path: Path | str,
    split: str = "train",
    *,
    images: Path | str | None = None,
    masks: bool = True,
    categories: Sequence[Category] | None = None,
    decode: bool = True,
    num_threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Returns everything that is wrong with a COCO-format data set; never raises for its content.

    Args:
        path: folder or annotation file, as for `open_coco`.
        split: "train", "val" or "test".
        images: folder of the pictures; looked for near the annotations if not given.
        masks: the model learns masks: check segmentations, and that every object has one.
        categories: classes of the model the data must fit.
        decode: decode every picture (a few ms each); else only headers are read.
        num_threads: pictures looked at at the same time.
        progress: called with (pictures done, pictures in all).
    """
    try:
        annotations = find_annotations(path, split)
    except ValueError as error:
        return Report((Problem("error", str(path), "no annotations", str(error)),))
    index, problems = parse_coco(annotations, masks=masks, categories=categories)
    if index is None or not len(index):
        return Report(tuple(problems))
    problems += check_index(index, annotations)
    try:
        folder = images or find_images(annotations, index.file_names[0])
    except ValueError as error:
        problems.append(Problem("error", annotations, "pictures not found", str(error)))
    else:
        data = DetectionDataset(index, folder)
        problems += check_pictures(data, decode=decode, num_threads=num_threads, progress=progress)
    return Report(tuple(problems), len(index), int((~index.is_ignored).sum()))


def check_index(index: DatasetIndex, file: str) -> list[Problem]:
    """Returns what training will drop, cut or miss, and an error where nothing is left to learn."""
    findings = Findings(file)
    owners = np.repeat(np.arange(len(index)), np.diff(index.starts))
    is_usable = _check_boxes(index, owners, findings)
    _check_repeated(index, owners, findings)
    _check_masks(index, owners, findings)
    _check_pictures_have_objects(index, owners, findings)
    counts = np.bincount(index.labels[is_usable], minlength=len(index.categories))
    for category, count in zip(index.categories, counts.tolist(), strict=True):
        if not count:
            findings.warning("class without objects", f"{category.name!r} (id {category.id})")
    if not is_usable.any():
        findings.error("nothing to learn", "no picture has an object that can be trained on")
    return findings.problems


def check_pictures(
    data: DetectionDataset,
    *,
    decode: bool = True,
    num_threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> list[Problem]:
    """Returns which pictures are missing, unreadable or not as large as their annotations say."""
    problems = []
    with ThreadPoolExecutor(num_threads) as pool:
        results = pool.map(lambda i: _check_picture(data, i, decode=decode), range(len(data)))
        for done, problem in enumerate(results, start=1):
            if problem is not None:
                problems.append(problem)
            if progress is not None:
                progress(done, len(data))
    return problems


def _check_picture(data: DetectionDataset, position: int, *, decode: bool) -> Problem | None:
    path, image_id = data.path(position), int(data.index.image_ids[position])
    if not files.exists(path):
        return Problem("error", path, "missing picture", "there is no such file", image_id)
    try:
        content = files.read_bytes(path)
        size = decode_image(content).shape[:2] if decode else read_header(BytesIO(content)).size
    except DecodeError as error:
        return Problem("error", path, "unreadable picture", str(error), image_id)
    except OSError as error:
        return Problem("error", path, "unreadable picture", error.strerror or str(error), image_id)
    expected = tuple(data.index.image_sizes[position].tolist())
    if size != expected:
        detail = f"(height, width) is {size}, the annotations say {expected}"
        if size == expected[::-1]:
            detail += "; were they made before its EXIF rotation was applied?"
        return Problem("error", path, "wrong picture size", detail, image_id)
    return None


def _check_boxes(
    index: DatasetIndex, owners: NDArray[np.int64], findings: Findings
) -> NDArray[np.bool_]:
    """Which annotations can be trained on; those that cannot and those that are cut are noted."""
    boxes, sizes = index.boxes, index.image_sizes[owners]
    is_usable = trainable(boxes, sizes[:, 0], sizes[:, 1]) & ~index.is_ignored
    is_empty = np.any(boxes[:, 2:] <= boxes[:, :2], axis=1)
    is_outside = np.any((boxes[:, :2] >= sizes[:, ::-1]) | (boxes[:, 2:] <= 0), axis=1)
    overhang = np.maximum(-boxes[:, :2], boxes[:, 2:] - sizes[:, ::-1]).max(1, initial=0)
    is_noted = (~is_usable | (overhang > MAX_OVERHANG_PX)) & ~index.is_ignored
    for row in np.flatnonzero(is_noted).tolist():
        if is_empty[row]:
            kind, what = "empty box", "no width or no height; dropped"
        elif is_outside[row]:
            kind, what = "box outside", "no part of it is in the picture; dropped"
        elif not is_usable[row]:
            kind, what = "box below a pixel", "less than a pixel of it is in the picture; dropped"
        else:
            kind, what = "box leaves picture", "cut at the border"
        corners = ", ".join(f"{value:g}" for value in boxes[row].tolist())
        size = f"{sizes[row, 1]} x {sizes[row, 0]}"
        detail = f"({corners}) in a picture of {size} pixels: {what}"
        findings.warning(kind, detail, *_ids(index, owners, row))
    return is_usable


def _check_repeated(index: DatasetIndex, owners: NDArray[np.int64], findings: Findings) -> None:
    """Objects that stand twice in a picture: twice the loss, and one can never be found."""
    rows = np.concatenate((owners[:, None], index.labels[:, None], index.boxes), 1)
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    for row in np.flatnonzero(first[inverse] != np.arange(len(rows))).tolist():
        other = index.annotation_ids[first[inverse[row]]]
        detail = f"same picture, class and box as annotation {other}"
        findings.warning("repeated object", detail, *_ids(index, owners, row))


def _check_masks(index: DatasetIndex, owners: NDArray[np.int64], findings: Findings) -> None:
    if index.masks is None:
        return
    is_absent = np.diff(index.masks.offsets) == 0
    if is_absent.all():
        detail = "no object has a segmentation: train a model without masks"
        findings.error("no masks", detail)
        return
    for row in np.flatnonzero(is_absent & ~index.is_ignored).tolist():
        detail = "no segmentation: a model with masks needs one of every object"
        findings.error("mask missing", detail, *_ids(index, owners, row))
    masked = np.flatnonzero(~is_absent & ~index.is_ignored)
    heights = index.image_sizes[owners, 0]
    for begin in range(0, len(masked), _MASKS_AT_ONCE):
        rows = masked[begin : begin + _MASKS_AT_ONCE]
        bounds = mask_bounds([index.masks[row] for row in rows.tolist()], heights[rows])
        bounds[:, 2:] += bounds[:, :2]
        iou = elementwise_iou(torch.from_numpy(bounds), torch.from_numpy(index.boxes[rows]))
        for row in rows[iou.numpy() < MIN_MASK_IOU].tolist():
            detail = "the rectangle around its mask and its box hardly overlap"
            findings.warning("mask elsewhere", detail, *_ids(index, owners, row))


def _check_pictures_have_objects(
    index: DatasetIndex, owners: NDArray[np.int64], findings: Findings
) -> None:
    every = np.bincount(owners, minlength=len(index))
    ignored = np.bincount(owners[index.is_ignored], minlength=len(index))
    for image in np.flatnonzero(every == ignored).tolist():
        name, image_id = index.file_names[image], int(index.image_ids[image])
        if every[image]:
            findings.warning("only crowds", f"{name!r}: all its objects are ignored", image_id)
        else:
            findings.warning("no object", f"{name!r} is trained on as background", image_id)


def _ids(index: DatasetIndex, owners: NDArray[np.int64], row: int) -> tuple[int, int]:
    """Image id and annotation id."""
    return int(index.image_ids[owners[row]]), int(index.annotation_ids[row])
