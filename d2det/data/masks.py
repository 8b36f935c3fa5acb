"""Ground-truth masks: any COCO segmentation to compact run lengths, run lengths to small rasters.

Polygons and run lengths of all kinds are kept as COCO's compressed run-length strings, made by
pycocotools, so pixels are its pixels by construction. A string becomes a raster only inside its
object's rectangle, at the size training needs: no canvas of the picture is ever allocated.

Letters: G objects of one picture, H x W pixels of the picture, R runs, P pixels of all rectangles.
Run lengths count pixels down the columns (COCO's order), background first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from numpy.typing import NDArray

from d2det import rle
from d2det.structures import CroppedMasks

MAX_COORDINATE = 1e6
"""Polygon corners farther away than this many pixels are refused: pycocotools walks along every
edge in steps of a fifth of a pixel, so a stray 1e12 would take all memory."""
_MAX_DIGITS = 7
"""Most characters of one run length: 35 bits, more than any picture has pixels."""

Array = NDArray[np.int64]


def encode_segmentation(segmentation: Any, height: int, width: int) -> bytes:
    """Returns a COCO segmentation as compressed run lengths, b"" where it says there is no mask.

    Args:
        segmentation: a list of polygons, run lengths ({"size", "counts"}; a list, text or bytes),
            or one of the ways to say none: None, [], "" and "[]".
        height: of the picture.
        width: of the picture.

    Raises:
        ValueError: what is wrong with it, without saying where.
    """
    if segmentation is None or segmentation in ([], "", "[]"):
        return b""
    if isinstance(segmentation, list):
        return _encode_polygons(segmentation, height, width)
    if isinstance(segmentation, dict):
        return _encode_runs(segmentation, height, width)
    raise ValueError(f"segmentation is {segmentation!r:.60}, neither polygons nor run lengths")


def encode_crop(mask: NDArray[np.bool_], x: int, y: int, height: int, width: int) -> bytes:
    """Returns as compressed run lengths of a picture the mask, (h, w), whose corner is at (x, y).

    Costs what the crop costs, however large the picture is.
    """
    steps = np.diff(np.pad(mask.T.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    column, row = np.nonzero(steps)  # first pixel of each run down a column, and its end
    edges = (x + column) * height + y + row
    return rle.from_intervals(edges.reshape(-1, 2), (height, width))["counts"]


def mask_bounds(strings: Sequence[bytes], heights: Array) -> Array:
    """Returns the (G, 4) rectangles (x, y, width, height) around masks, (0, 0, 1, 1) if empty.

    heights: (G,), of the picture of each mask.
    """
    start, length, owner = _object_runs(*rle.read_many(strings))
    return _bounding_rectangles(start, length, owner, len(strings), heights[owner])


def mask_areas(strings: Sequence[bytes]) -> Array:
    """Returns the (G,) numbers of pixels of masks."""
    _, length, owner = _object_runs(*rle.read_many(strings))
    return np.bincount(owner, weights=length, minlength=len(strings)).astype(np.int64)


def rasterise(
    strings: Sequence[bytes],
    height: int,
    width: int,
    *,
    size: tuple[int, int] | None = None,
    mirrored: tuple[bool, bool] = (False, False),
) -> CroppedMasks:
    """Returns G masks of a picture as rasters inside their rectangles, resized and mirrored.

    Args:
        strings: G compressed run lengths of the whole picture.
        height: of the picture.
        width: of the picture.
        size: (height, width) to resize to by nearest neighbour, as `cv2.resize` does the canvas.
        mirrored: whether the resized masks are mirrored (left to right, top to bottom).

    A mask that is empty, or vanishes in the resize, has a rectangle of one pixel, and it is 0.
    """
    counts, bounds = rle.read_many(strings)
    rectangles, starts, columns = _fill_rectangles(counts, bounds, height)
    target_height, target_width = size or (height, width)
    x_spans = _Axis(width, target_width, mirrored[0]).spans(rectangles[:, 0], rectangles[:, 2])
    y_spans = _Axis(height, target_height, mirrored[1]).spans(rectangles[:, 1], rectangles[:, 3])
    rasters = []
    for (x, xs), (y, ys), (_, _, w, h), start in zip(
        x_spans, y_spans, rectangles.tolist(), starts.tolist(), strict=True
    ):
        crop = columns[start : start + w * h].reshape(w, h)
        raster = crop.T[ys].take(xs, axis=1)
        if not raster.size:
            x, y = min(x, target_width - 1), min(y, target_height - 1)
            raster = np.zeros((1, 1), np.uint8)
        rasters.append((x, y, raster))
    return _pack(rasters)


class _Axis:
    """The nearest-neighbour map of one axis: which source pixel each target pixel shows."""

    def __init__(self, source: int, target: int, mirrored: bool) -> None:
        scale = 1.0 / (target / source)  # rounded twice, as OpenCV computes it
        self.source = np.minimum((np.arange(target) * scale).astype(np.int64), source - 1)
        self.mirrored = mirrored

    def spans(self, start: Array, length: Array) -> list[tuple[int, Array]]:
        """Returns for each source interval its first target pixel, and what all of them show."""
        low = np.searchsorted(self.source, start)
        high = np.searchsorted(self.source, start + length)
        spans = []
        for a, b, offset in zip(low.tolist(), high.tolist(), start.tolist(), strict=True):
            shown = self.source[a:b] - offset
            if self.mirrored:
                spans.append((len(self.source) - b, shown[::-1]))
            else:
                spans.append((a, shown))
        return spans


def _pack(rasters: list[tuple[int, int, NDArray[np.uint8]]]) -> CroppedMasks:
    """Rasters (h, w) at (x, y), laid one after the other."""
    rectangles = np.array([(x, y, *r.shape[::-1]) for x, y, r in rasters], np.int64)
    rectangles = rectangles.reshape(-1, 4)
    ends = np.cumsum(rectangles[:, 2] * rectangles[:, 3])
    pixels = [r.reshape(-1) for _, _, r in rasters]
    return CroppedMasks(
        pixels=torch.from_numpy(np.concatenate(pixels) if pixels else np.zeros(0, np.uint8)),
        rectangles=torch.from_numpy(rectangles),
        starts=torch.from_numpy(ends - rectangles[:, 2] * rectangles[:, 3]),
    )


def _fill_rectangles(
    counts: Array, bounds: Array, height: int
) -> tuple[Array, Array, NDArray[np.uint8]]:
    """Rectangles (G, 4) as (x, y, w, h), where each begins, and their pixels (P,) column by column.

    A run that goes on in the next column touches the first and the last row, so its rectangle is
    as high as the picture and the run is one run inside the rectangle too.
    """
    start, length, owner = _object_runs(counts, bounds)
    rectangles = _bounding_rectangles(start, length, owner, len(bounds) - 1, height)
    sizes = rectangles[:, 2] * rectangles[:, 3]
    starts = np.cumsum(sizes) - sizes
    x, y, _, h = rectangles[owner].T
    begin = starts[owner] + (start // height - x) * h + start % height - y
    steps = np.zeros(sizes.sum() + 1, np.int8)
    steps[begin] += 1
    steps[begin + length] -= 1
    return rectangles, starts, np.cumsum(steps[:-1], dtype=np.int8).view(np.uint8)


def _object_runs(counts: Array, bounds: Array) -> tuple[Array, Array, Array]:
    """First pixel, length and owner of the runs that are object, not background."""
    owner = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    total = np.cumsum(counts)
    before = np.append(0, total)[bounds[:-1]]
    is_object = (np.arange(len(counts)) - bounds[owner]) % 2 == 1
    is_object &= counts > 0
    owner, length = owner[is_object], counts[is_object]
    return total[is_object] - length - before[owner], length, owner


def _bounding_rectangles(
    start: Array, length: Array, owner: Array, num_objects: int, height: int | Array
) -> Array:
    """The (G, 4) rectangles (x, y, w, h) around the runs of each object, one pixel where none."""
    rectangles = np.tile(np.array([0, 0, 1, 1], np.int64), (num_objects, 1))
    if not len(owner):
        return rectangles
    end = start + length - 1
    wraps = start // height != end // height
    top, bottom = np.where(wraps, 0, start % height), np.where(wraps, height - 1, end % height)
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    left, right = (
        np.minimum.reduceat(start // height, first),
        np.maximum.reduceat(end // height, first),
    )
    top, bottom = np.minimum.reduceat(top, first), np.maximum.reduceat(bottom, first)
    rectangles[owner[first]] = np.stack((left, top, right - left + 1, bottom - top + 1), 1)
    return rectangles


def _encode_polygons(polygons: list[Any], height: int, width: int) -> bytes:
    for polygon in polygons:
        if not isinstance(polygon, list):
            raise ValueError(f"segmentation holds {polygon!r:.40} where a polygon's list belongs")
        if len(polygon) % 2 or len(polygon) < 6:
            raise ValueError(f"polygon of {len(polygon)} numbers; it needs 3 or more x, y pairs")
        for value in polygon:
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"polygon holds {value!r:.40}, which is not a finite number")
            if abs(value) > MAX_COORDINATE:
                raise ValueError(f"polygon corner at {value:g} is far outside any picture")
    rings = pycocotools.mask.frPyObjects(polygons, height, width)
    whole = rings[0] if len(rings) == 1 else pycocotools.mask.merge(rings)
    return bytes(whole["counts"])


def _encode_runs(runs: dict[str, Any], height: int, width: int) -> bytes:
    counts, size = runs.get("counts"), runs.get("size")
    if size != [height, width] and size != (height, width):
        raise ValueError(f"run lengths of size {size} in a picture of {[height, width]} (h, w)")
    if isinstance(counts, str):
        counts = counts.encode()
    if isinstance(counts, list):
        lengths = _checked_lengths(counts)
    elif isinstance(counts, bytes):
        lengths = _decode_untrusted(counts)
    else:
        raise ValueError(f"run lengths have counts {counts!r:.40}")
    if lengths.min(initial=0) < 0 or lengths.sum() != height * width:
        raise ValueError(
            f"run lengths sum to {lengths.sum()}, the picture has {height * width} pixels"
        )
    return counts if isinstance(counts, bytes) else rle.write_counts(lengths)


def _checked_lengths(counts: list[Any]) -> Array:
    for count in counts:
        if type(count) is not int or not 0 <= count < 2**31:
            raise ValueError(f"run lengths hold {count!r:.40}, which is not a count")
    return np.array(counts, np.int64)


def _decode_untrusted(counts: bytes) -> Array:
    codes = np.frombuffer(counts, np.uint8)
    if not len(codes) or codes.min() < 48 or codes.max() > 111 or codes[-1] - 48 & 32:
        raise ValueError("run lengths are not a COCO compressed string")
    digits = np.diff(np.flatnonzero((codes - 48) & 32 == 0), prepend=-1)
    if digits.max() > _MAX_DIGITS:
        raise ValueError("run lengths hold a count of more than 35 bits")
    return rle.read_counts(counts)
