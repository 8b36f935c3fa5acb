"""Large pictures cut into overlapping patches with their labels, by the rules of iSAID's authors.

A picture is cut only where both its sides exceed the patch; smaller ones stay whole. The last
patch of a row or column is moved inside. Masks are clipped to the patch, boxes drawn tightly
around what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath

import cv2
import numpy as np
from numpy.typing import NDArray

from d2det.data.export import write_coco
from d2det.data.index import DatasetIndex, build_index
from d2det.data.masks import encode_crop, rasterise
from d2det.data.samples import DetectionDataset
from d2det.inference.windows import Window, cut_windows

MIN_PIXELS = 10
"""Parts of objects of so many pixels or fewer are dropped."""
MIN_VISIBLE = 0.3
"""Objects without a mask are kept where at least this share of their box is in the patch."""


@dataclass(frozen=True)
class _Patch:
    """One patch: its name and size (height, width), and what is in it.

    rows: annotations of the data set it shows.  boxes: xyxy in its frame, one a row.
    masks: run lengths of its frame, one a row; empty strings without masks.
    """

    name: str
    size: tuple[int, int]
    rows: list[int]
    boxes: list[tuple[float, float, float, float]]
    masks: list[bytes]


def cut_dataset(
    data: DetectionDataset,
    folder: Path | str,
    split: str,
    *,
    tile: int = 800,
    overlap: int = 200,
    keep_empty: bool = True,
    num_threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes the patches of a data set as a COCO-format folder; returns the annotation file.

    Patches are named P0002_<y1>_<y2>_<x1>_<x2>.png after P0002.png and their place in it.

    Args:
        data: the pictures and their objects.
        folder: where to; `split` becomes a folder of pictures in it.
        split: "train", "val" or any other name.
        tile: side of a patch in pixels.
        overlap: pixels that neighbouring patches share at least.
        keep_empty: keep patches without objects (iSAID's own annotation files list none).
        num_threads: pictures cut at the same time.
        progress: called with (pictures done, pictures in all).

    Raises:
        ValueError: two pictures differ in their suffix alone, so their patches would be the same.
    """
    pictures = Path(folder) / split
    stems = [PurePath(name).with_suffix("") for name in data.index.file_names]
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise ValueError(f"two pictures are called {twice} but for their suffix; rename one")

    def cut(position: int) -> list[_Patch]:
        return list(_cut(data, position, pictures, tile, overlap, keep_empty))

    patches: list[_Patch] = []
    with ThreadPoolExecutor(num_threads) as pool:
        for done, found in enumerate(pool.map(cut, range(len(data))), start=1):
            patches += found
            if progress is not None:
                progress(done, len(data))
    path = Path(folder) / "annotations" / f"instances_{split}.json"
    write_coco(_index(data.index, patches), path)
    return path


def patch_windows(size: tuple[int, int], *, tile: int, overlap: int) -> list[Window]:
    """Returns the patches of a picture of (height, width): one where a side is not above `tile`."""
    if min(size) <= tile:
        return [Window(0, 0, *size)]
    return cut_windows(size, tile=tile, overlap=overlap)


def _cut(
    data: DetectionDataset, position: int, folder: Path, tile: int, overlap: int, keep_empty: bool
) -> Iterator[_Patch]:
    image = data.image(position)
    size = (image.shape[0], image.shape[1])
    stem = PurePath(data.index.file_names[position]).with_suffix("")
    objects = _Objects(data.index, position)
    for window in patch_windows(size, tile=tile, overlap=overlap):
        y, x, bottom, right = window.y, window.x, window.y + window.height, window.x + window.width
        is_whole = (window.height, window.width) == size
        name = f"{stem}.png" if is_whole else f"{stem}_{y}_{bottom}_{x}_{right}.png"
        patch = objects.inside(window, name)
        if keep_empty or patch.rows:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            patch_image = cv2.cvtColor(image[y:bottom, x:right], cv2.COLOR_RGB2BGR)
            if not cv2.imwrite(str(folder / name), patch_image):
                raise OSError(f"cannot write {folder / name}")
            yield patch


class _Objects:
    """The objects of one picture, to be looked at through windows."""

    def __init__(self, index: DatasetIndex, position: int) -> None:
        span = index.annotations(position)
        self._rows = range(span.start, span.stop)
        self._boxes = index.boxes[span].astype(np.float64)
        height, width = index.image_sizes[position].tolist()
        table = index.masks
        self._strings = [table[row] if table is not None else b"" for row in self._rows]
        masked = [place for place, string in enumerate(self._strings) if string]
        masks = rasterise([self._strings[place] for place in masked], height, width)
        self._crops = {
            place: (x, y, masks.pixels[start : start + w * h].numpy().reshape(h, w).view(np.bool_))
            for place, (x, y, w, h), start in zip(
                masked, masks.rectangles.tolist(), masks.starts.tolist(), strict=True
            )
        }

    def inside(self, window: Window, name: str) -> _Patch:
        """What of the objects is in the window."""
        patch = _Patch(name, (window.height, window.width), [], [], [])
        corner = np.array([window.x, window.y] * 2)
        limits = np.array([window.width, window.height] * 2)
        clipped = np.clip(self._boxes - corner, 0, limits)
        for place, row in enumerate(self._rows):
            if place in self._crops:
                found = _clip_mask(*self._crops[place], window)
                if found is not None:
                    box, string = found
                    patch.rows.append(row)
                    patch.boxes.append(box)
                    patch.masks.append(string)
            elif _is_kept(_area(clipped[place]), _area(self._boxes[place])):
                left, top, right, bottom = clipped[place].tolist()
                patch.rows.append(row)
                patch.boxes.append((left, top, right, bottom))
                patch.masks.append(b"")
        return patch


def _clip_mask(
    x: int, y: int, mask: NDArray[np.bool_], window: Window
) -> tuple[tuple[float, float, float, float], bytes] | None:
    """Box and run lengths, in the window's frame, of the part of a mask at (x, y) that it shows."""
    left, top = max(window.x - x, 0), max(window.y - y, 0)
    part = mask[
        top : max(window.y + window.height - y, 0), left : max(window.x + window.width - x, 0)
    ]
    if np.count_nonzero(part) <= MIN_PIXELS or not _has_outline(part):
        return None
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    part = part[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    left, top = x + left + int(columns[0]) - window.x, y + top + int(rows[0]) - window.y
    height, width = part.shape
    string = encode_crop(part, left, top, window.height, window.width)
    return (left, top, left + width, top + height), string


def _has_outline(mask: NDArray[np.bool_]) -> bool:
    """Whether a part of the mask has an outline of three corners or more: a line has not."""
    padded = np.pad(mask.astype(np.uint8), 1)
    outlines, _ = cv2.findContours(padded, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return any(len(outline) >= 3 for outline in outlines)


def _is_kept(visible: float, whole: float) -> bool:
    return visible > MIN_PIXELS and visible >= MIN_VISIBLE * whole


def _area(box: NDArray[np.float64]) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _index(source: DatasetIndex, patches: list[_Patch]) -> DatasetIndex:
    rows = [row for patch in patches for row in patch.rows]
    return build_index(
        source.categories,
        file_names=[patch.name for patch in patches],
        image_ids=range(1, len(patches) + 1),
        image_sizes=[patch.size for patch in patches],
        owners=[place for place, patch in enumerate(patches) for _ in patch.rows],
        labels=source.labels[rows],
        boxes=[box for patch in patches for box in patch.boxes],
        is_ignored=source.is_ignored[rows],
        masks=[mask for patch in patches for mask in patch.masks],
    )
