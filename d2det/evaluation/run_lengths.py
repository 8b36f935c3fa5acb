"""Masks of annotations and results as compressed run lengths, checked before they are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from d2det.data.masks import encode_segmentation
from d2det.structures import Rle


def read_masks(
    segmentations: Sequence[Any], sizes: Sequence[Sequence[int]], *, what: str
) -> tuple[Rle, ...]:
    """Returns D masks as compressed run lengths.

    Args:
        segmentations: polygons, or {"size", "counts"} with counts as text, bytes or a list.
        sizes: (height, width) of the picture of each.
        what: "detection" or "object", for the message.

    Raises:
        ValueError: one is missing, of another size than its picture, or not a COCO encoding. That
            the runs of a compressed one add up to the picture is not checked: for a large result
            it takes as long as the evaluation.
    """
    rles = tuple(
        _read(what, n, *pair) for n, pair in enumerate(zip(segmentations, sizes, strict=True))
    )
    malformed = np.flatnonzero(_is_malformed([rle["counts"] for rle in rles]))
    if len(malformed):
        raise ValueError(f"{what} {malformed[0]}: its mask is not a COCO run-length code")
    return rles


def mask_areas(masks: Sequence[Rle]) -> NDArray[np.float64]:
    """Returns the (D,) areas of `masks` in pixels."""
    # pycocotools 2.0.11 under NumPy 2 raises OverflowError for more than 255 masks at once.
    parts = [coco_mask.area(list(masks[n : n + 255])) for n in range(0, len(masks), 255)]
    return np.concatenate([np.zeros(0), *parts])


def mask_boxes(masks: Sequence[Rle]) -> NDArray[np.float64]:
    """Returns the (D, 4) smallest boxes (x, y, width, height) around `masks`."""
    return np.asarray(coco_mask.toBbox(list(masks)), np.float64).reshape(-1, 4)


def _read(what: str, position: int, segmentation: Any, size: Sequence[int]) -> Rle:
    height, width = size
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    if isinstance(counts, str | bytes):
        given = segmentation.get("size")
        if not isinstance(given, list | tuple) or [*given] != [height, width]:
            raise ValueError(
                f"{what} {position}: mask of size {given!r:.40} in a picture of "
                f"{[height, width]} (height, width)"
            )
        return Rle(
            size=(height, width), counts=counts if isinstance(counts, bytes) else counts.encode()
        )
    try:
        counts = encode_segmentation(segmentation, height, width)
    except ValueError as error:
        raise ValueError(f"{what} {position}: {error}") from error
    if not counts:
        raise ValueError(f"{what} {position} has no segmentation: masks cannot be scored")
    return Rle(size=(height, width), counts=counts)


def _is_malformed(strings: Sequence[bytes]) -> NDArray[np.bool_]:
    """(D,) whether a string has characters, or an end, that COCO's code does not have."""
    lengths = np.array([len(string) for string in strings], np.int64)
    malformed = lengths == 0
    if len(strings) and not malformed.any():
        codes = np.frombuffer(b"".join(strings), np.uint8)
        starts = np.cumsum(lengths) - lengths
        malformed |= np.minimum.reduceat(codes, starts) < 48
        malformed |= np.maximum.reduceat(codes, starts) > 111
        malformed |= (codes[starts + lengths - 1] - 48) & 32 > 0  # more digits were to come
    return np.asarray(malformed)
