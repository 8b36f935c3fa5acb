"""Mask probabilities on box grids straight to COCO run lengths, without a picture-sized canvas."""

from __future__ import annotations

from typing import Literal, TypedDict

import torch
from torch import Tensor

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

    "exact" reads each mask at pixel centres, bilinearly, zero outside its grid (grid_sample with
    align_corners=False). "released" is the official paste: the inclusive box is truncated to
    integers and clipped to the scene, and the grid resized to it as cv2.resize does.

    Args:
        masks: (D, M, M) float probabilities on the grid of each box.
        boxes: (D, 4) float, half-open xyxy in the frame of a window of the scene.
        height, width: of the scene in pixels.
        threshold: pixels above it are inside.
        origin: (x, y) of the window in the scene.
        convention: which rule.

    Returns:
        D encodings, the same bytes as pycocotools gives for the same pixels.
    """
    return masks_to_rle_reference(
        masks,
        boxes,
        height=height,
        width=width,
        threshold=threshold,
        origin=origin,
        convention=convention,
    )


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
    placed = boxes.detach().double().cpu() + shift
    return [
        _encode(*_paste(mask, box, height, width, threshold, convention), height, width)
        for mask, box in zip(masks.detach().float().cpu(), placed, strict=True)
    ]


def _paste(
    mask: Tensor, box: Tensor, height: int, width: int, threshold: float, convention: Convention
) -> tuple[Tensor, int, int]:
    """Returns the (h, w) bool pixels of a rectangle of the scene and its x and y."""
    x, across = _axis_taps(mask.shape[1], float(box[0]), float(box[2]), width, convention)
    y, down = _axis_taps(mask.shape[0], float(box[1]), float(box[3]), height, convention)
    return (down @ mask @ across.T) > threshold, x, y


def _axis_taps(
    cells: int, low: float, high: float, size: int, convention: Convention
) -> tuple[int, Tensor]:
    """Returns the first pixel of an axis and the (pixels, cells) interpolation weights."""
    if convention == "released":
        first, last = max(int(low), 0), min(int(high - 1), size - 1)
        count = max(last - first + 1, 1)
        at = ((torch.arange(count, dtype=torch.float64) + 0.5) * cells / count - 0.5).clamp(
            0, cells - 1
        )
    else:
        margin = (high - low) / cells
        first = max(0, int(torch.tensor(low - margin).floor()))
        count = max(0, min(size, int(torch.tensor(high + margin).ceil())) - first)
        pixels = torch.arange(first, first + count, dtype=torch.float64) + 0.5
        at = (pixels - low) * (cells / (high - low)) - 0.5
    distance = (at[:, None] - torch.arange(cells, dtype=torch.float64)).abs()
    return first, (1 - distance).clamp(min=0).float()


def _encode(pixels: Tensor, x: int, y: int, height: int, width: int) -> Rle:
    """Returns the encoding of `pixels` (h, w) placed at (x, y) of a scene."""
    on = pixels.T.nonzero()  # column-major
    at = (on[:, 0] + x) * height + on[:, 1] + y
    if len(at) == 0:
        return Rle(size=(height, width), counts=_compress([height * width]))
    starts = torch.cat((torch.ones(1, dtype=torch.bool), at.diff() != 1))
    ends = torch.cat((starts[1:], torch.ones(1, dtype=torch.bool)))
    edges = torch.stack((at[starts], at[ends] + 1), 1).flatten()
    counts = torch.cat((edges[:1], edges.diff())).tolist()
    if (rest := height * width - int(edges[-1])) > 0:
        counts.append(rest)
    return Rle(size=(height, width), counts=_compress(counts))


def _compress(counts: list[int]) -> bytes:
    """Returns COCO's text form: differences to the count two before, 5 bits a character."""
    out = bytearray()
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            digit, value = value & 31, value >> 5
            last = value == (-1 if digit & 16 else 0)
            out.append((digit if last else digit | 32) + 48)
            if last:
                break
    return bytes(out)
