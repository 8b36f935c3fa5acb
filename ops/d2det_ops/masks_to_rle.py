"""Mask probabilities on box grids straight to COCO run lengths, without a picture-sized canvas."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, TypedDict

import torch
from torch import Tensor

from d2det_ops import _library

Convention = Literal["exact", "released"]


class Rle(TypedDict):
    """COCO run-length encoding of a mask: `size` is (height, width), `counts` compressed."""

    size: tuple[int, int]
    counts: bytes


def masks_to_rle(
    masks: Tensor,
    boxes: Tensor,
    *,
    height: int,
    width: int,
    threshold: float = 0.5,
    origin: tuple[int, int] = (0, 0),
    convention: Convention = "exact",
) -> list[Rle]:
    """Returns the run-length encoded masks of D objects in the frame of a whole scene.

    "exact" reads each grid at pixel centres, bilinearly, zero beyond it (grid_sample with
    align_corners=False); a box without area gives an empty mask. "released" is the official paste:
    the inclusive box is truncated to integers and clipped to the scene, and the grid resized to it
    as cv2.resize does. Time follows the boxes' sides and outlines, whatever the scene's size.

    Args:
        masks: (D, M, M) float probabilities on the grid of each box; computed in float32.
        boxes: (D, 4) float, half-open xyxy in the frame of a window of the scene.
        height, width: of the scene in pixels.
        threshold: pixels above it are inside.
        origin: (x, y) of the window in the scene.
        convention: which rule.

    Returns:
        D encodings, the same bytes as pycocotools gives for the same pixels (which itself cannot
        take a scene of 2^32 pixels or more; this can).

    Raises:
        ValueError: for shapes, a scene or a convention that make no sense.
    """
    _check(masks, boxes, height, width, threshold, convention)
    masks, boxes = masks.detach().float(), boxes.detach().float()
    if (device := _library.placement("masks_to_rle", masks)) is None:
        return masks_to_rle_reference(
            masks,
            boxes,
            height=height,
            width=width,
            threshold=threshold,
            origin=origin,
            convention=convention,
        )
    data, offsets = _library.op("masks_to_rle")(
        masks.to(device),
        boxes.to(device),
        height,
        width,
        *origin,
        threshold,
        convention == "released",
    )
    text, ends = bytes(data.cpu().numpy()), offsets.tolist()
    size = (height, width)
    return [Rle(size=size, counts=text[a:b]) for a, b in pairwise(ends)]


def masks_to_rle_reference(
    masks: Tensor,
    boxes: Tensor,
    *,
    height: int,
    width: int,
    threshold: float = 0.5,
    origin: tuple[int, int] = (0, 0),
    convention: Convention = "exact",
) -> list[Rle]:
    """Returns what `masks_to_rle` returns, thresholding every pixel near the box of each object."""
    shift = torch.tensor(origin, dtype=torch.float64).repeat(2)
    placed = boxes.detach().float().cpu().double() + shift
    encoded = []
    for mask, (x1, y1, x2, y2) in zip(masks.detach().float().cpu(), placed.tolist(), strict=True):
        x, across = _axis(mask.shape[1], x1, x2, width, convention)
        y, down = _axis(mask.shape[0], y1, y2, height, convention)
        padded = torch.nn.functional.pad(mask, (1, 1, 1, 1))
        rows = _interpolate(padded.T, across).T
        encoded.append(_encode(_interpolate(rows, down) > threshold, x, y, height, width))
    return encoded


def _axis(
    cells: int, low: float, high: float, size: int, convention: Convention
) -> tuple[int, Tensor]:
    """Returns the first pixel of an axis, and where it and the next ones read the grid: (P,)."""
    if convention == "released":
        if not (math.isfinite(low) and math.isfinite(high)):
            return 0, torch.zeros(0)
        first, last = min(max(int(low), 0), size), min(int(high - 1), size - 1)
        count = max(last - first + 1, 1)
        at = (torch.arange(count, dtype=torch.float64) + 0.5) * (1 / (count / cells)) - 0.5
        return first, at[: size - first].float().clamp(0, cells - 1)
    scale = cells / (high - low) if high > low else 0.0
    if not 0 < scale < math.inf:
        return 0, torch.zeros(0)
    first = max(0, math.floor(low - 1 / scale))
    end = max(first, min(size, math.ceil(high + 1 / scale)))
    pixels = torch.arange(first, end, dtype=torch.float64)
    return first, (pixels + 0.5 - low) * scale - 0.5


def _interpolate(padded: Tensor, at: Tensor) -> Tensor:
    """Returns rows (P, K) read at positions `at` (P,) of a grid (M + 2, K) with a zero border."""
    below = at.floor()
    fraction = (at - below).float()[:, None]
    cell = below.long().clamp(-1, len(padded) - 2) + 1
    # Positions that far out read only zeros, whatever the fraction.
    beyond = (below < -1) | (below >= len(padded) - 2)
    value = padded[cell] * (1 - fraction) + padded[(cell + 1).clamp(max=len(padded) - 1)] * fraction
    return torch.where(beyond[:, None], 0, value)


def _encode(pixels: Tensor, x: int, y: int, height: int, width: int) -> Rle:
    """Returns the encoding of `pixels` (h, w) bool placed at (x, y) of a scene."""
    on = pixels.T.nonzero()  # column-major
    at = (on[:, 0] + x) * height + on[:, 1] + y
    first = torch.ones(min(len(at), 1), dtype=torch.bool)
    breaks = at.diff() != 1
    starts, ends = at[torch.cat((first, breaks))], at[torch.cat((breaks, first))] + 1
    edges = [0, *torch.stack((starts, ends), 1).flatten().tolist()]
    counts = [after - before for before, after in pairwise(edges)]
    if edges[-1] < height * width:
        counts.append(height * width - edges[-1])
    return Rle(size=(height, width), counts=_compress(counts))


def _compress(counts: list[int]) -> bytes:
    """Returns COCO's text form: differences to the count two before, five bits a character."""
    out = bytearray()
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            digit, value = value & 31, value >> 5
            more = value != (-1 if digit & 16 else 0)
            out.append((digit | 32 if more else digit) + 48)
    return bytes(out)


def _check(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float, convention: str
) -> None:
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or masks.shape[1] == 0:
        raise ValueError(f"masks must be (D, M, M), got {tuple(masks.shape)}")
    if boxes.shape != (len(masks), 4):
        raise ValueError(f"boxes {tuple(boxes.shape)} do not fit {len(masks)} masks")
    if height <= 0 or width <= 0:
        raise ValueError(f"the scene must have pixels, got {height} x {width}")
    if not threshold >= 0:
        raise ValueError(f"threshold must not be negative, got {threshold}")
    if convention not in ("exact", "released"):
        raise ValueError(f'convention must be "exact" or "released", got {convention!r}')


@_library.register_fake("masks_to_rle")
def _(
    masks: Tensor,
    boxes: Tensor,
    height: int,
    width: int,
    x: int,
    y: int,
    threshold: float,
    released: bool,
) -> tuple[Tensor, Tensor]:
    length = torch.library.get_ctx().new_dynamic_size()
    return (
        masks.new_empty(length, dtype=torch.uint8),
        masks.new_empty(masks.shape[0] + 1, dtype=torch.int64),
    )
