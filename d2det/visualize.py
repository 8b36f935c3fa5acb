"""Draws objects on pictures: boxes, masks, names and scores, legible at any picture size.

Letters: H x W pixels of the picture, D objects, K classes. Colours are RGB, 0 to 255.
"""

from __future__ import annotations

import colorsys
import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from d2det.data.masks import rasterise
from d2det.structures import Detections, Rle

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
_Rectangle = tuple[int, int, int, int]

_GOLDEN_ANGLE = 0.618033988749895
"""Turn of hue from class to class; no two of the first dozens come close."""
_CROWDED = 40
"""From so many objects on, a label wider than its object is left to the legend."""
_LEGEND_ROWS = 12
"""Most frequent classes that the legend lists."""
_LEGEND_TEXT = 0.6
"""Size of the legend's letters over that of labels; never less than `_SMALLEST_TEXT`."""
_LEGEND_SHARE = 0.08
"""A legend that would take more of the picture than this hides more than it tells: left out."""
_SMALLEST_TEXT, _LARGEST_TEXT = 11, 60
"""Pixels."""


@dataclass(frozen=True)
class DrawingStyle:
    """How objects are drawn; None lets the picture's size decide.

    line_width: of boxes, in pixels.
    text_size: height of letters, in pixels.
    mask_opacity: 0 to 1.
    labels: "auto" leaves out labels that would cover others and adds a legend then, "all" draws
        every label, "none" draws neither labels nor legend.
    """

    line_width: int | None = None
    text_size: int | None = None
    mask_opacity: float = 0.35
    labels: Literal["auto", "all", "none"] = "auto"


DEFAULT_STYLE = DrawingStyle()


def draw_detections(
    image: Picture,
    detections: Detections,
    class_names: Sequence[str],
    *,
    min_score: float = 0.0,
    style: DrawingStyle = DEFAULT_STYLE,
) -> Picture:
    """Returns the picture with what was found in it.

    Args:
        image: (H, W, 3) uint8 RGB, left as it is.
        detections: in the frame of the picture.
        class_names: K names, label by label.
        min_score: detections below it are left out.
        style: widths, sizes and what to label.
    """
    shown = detections.select(detections.scores >= min_score)
    labels = shown.labels.tolist()
    return draw_objects(
        image,
        shown.boxes.numpy(),
        labels,
        class_names,
        captions=[
            f"{class_names[label]} {score:.2f}"
            for label, score in zip(labels, shown.scores.tolist(), strict=True)
        ],
        masks=shown.masks,
        style=style,
    )


def draw_objects(
    image: Picture,
    boxes: NDArray[np.floating],
    labels: Sequence[int],
    class_names: Sequence[str],
    *,
    captions: Sequence[str] | None = None,
    masks: Sequence[Rle] | None = None,
    colours: Sequence[Colour] | None = None,
    style: DrawingStyle = DEFAULT_STYLE,
) -> Picture:
    """Returns the picture with boxes, masks and captions, most important object first.

    Args:
        image: (H, W, 3) uint8 RGB, left as it is.
        boxes: (D, 4) half-open xyxy in pixels of the picture; they may leave it.
        labels: D classes.
        class_names: K names.
        captions: D texts; default: the names.
        masks: D run-length encodings of the size of the picture.
        colours: D colours; default: one a class.
        style: widths, sizes and what to label.

    Raises:
        ValueError: the picture is not (H, W, 3) uint8.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"the picture must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    canvas = np.ascontiguousarray(image).copy()
    colours = [class_colour(label) for label in labels] if colours is None else colours
    if masks is not None:
        canvas = draw_masks(canvas, masks, colours, opacity=style.mask_opacity)
    _draw_boxes(canvas, boxes, colours, style.line_width)
    if style.labels == "none" or not len(labels):
        return canvas
    if captions is None:
        captions = [class_names[label] for label in labels]
    written = _draw_captions(canvas, boxes, captions, colours, style)
    if len(written) < len(captions):
        counts = Counter(labels).most_common(_LEGEND_ROWS)
        rows = [(f"{class_names[k]}  {n}", class_colour(k)) for k, n in counts]
        busy = [*written, *np.nan_to_num(boxes).astype(int).tolist()]
        size = max(_SMALLEST_TEXT, round(_LEGEND_TEXT * text_size(canvas, style)))
        _draw_legend(canvas, rows, size, busy)
    return canvas


def draw_masks(
    image: Picture, masks: Sequence[Rle], colours: Sequence[Colour], *, opacity: float = 0.35
) -> Picture:
    """Returns the picture with masks blended in and outlined, the first ones on top.

    Args:
        image: (H, W, 3) uint8 RGB, left as it is.
        masks: D run-length encodings of the size of the picture.
        colours: D colours.
        opacity: of the masks, 0 to 1.

    Raises:
        ValueError: a mask has another size than the picture.
    """
    canvas = np.ascontiguousarray(image).copy()
    height, width = canvas.shape[:2]
    for mask in masks:
        if tuple(mask["size"]) != (height, width):
            raise ValueError(f"mask of size {mask['size']} on a picture of {(height, width)}")
    rasters = rasterise([mask["counts"] for mask in masks], height, width)
    thickness = max(1, text_size(canvas) // 18)
    starts, rectangles = rasters.starts.tolist(), rasters.rectangles.tolist()
    # Each inside its rectangle only: a canvas a mask would cost seconds in a large scene.
    for n in reversed(range(len(masks))):
        x, y, w, h = rectangles[n]
        inside = rasters.pixels[starts[n] : starts[n] + w * h].numpy().reshape(h, w)
        window = canvas[y : y + h, x : x + w]
        mixed = window * (1 - opacity) + np.array(colours[n]) * opacity
        window[inside > 0] = mixed[inside > 0]
        outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, colours[n], thickness, cv2.LINE_AA, offset=(x, y))
    return canvas


def grid(
    rows: Sequence[Sequence[Picture]],
    *,
    titles: Sequence[str] = (),
    cell: tuple[int, int] = (480, 480),
    gap: int = 8,
) -> Picture:
    """Returns pictures in rows and columns on white, each scaled to fit its cell.

    Args:
        rows: pictures (H, W, 3) uint8 RGB of any size; rows may differ in length.
        titles: text above each column.
        cell: (height, width) in pixels.
        gap: pixels between cells.
    """
    height, width = cell
    head = 34 if titles else 0
    columns = max((len(row) for row in rows), default=1)
    page = np.full(
        (head + len(rows) * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8
    )
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            fitted = fit(image, cell)
            h, w = fitted.shape[:2]
            y = head + gap + r * (height + gap) + (height - h) // 2
            x = gap + c * (width + gap) + (width - w) // 2
            page[y : y + h, x : x + w] = fitted
    if titles:
        drawn = Image.fromarray(page)
        pen = ImageDraw.Draw(drawn)
        for c, title in enumerate(titles):
            middle = (gap + c * (width + gap) + width // 2, head // 2 + gap // 2)
            pen.text(middle, title, fill=(40, 40, 40), font=_font(20), anchor="mm")
        page = np.asarray(drawn)
    return page


def fit(image: Picture, size: tuple[int, int]) -> Picture:
    """Returns the picture scaled to touch (height, width) from inside."""
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    shape = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, shape, interpolation=how), np.uint8)


def class_colour(label: int) -> Colour:
    """Returns the colour of a class: hues far apart, lightness in three steps."""
    hue = (0.02 + label * _GOLDEN_ANGLE) % 1
    red, green, blue = colorsys.hls_to_rgb(hue, (0.55, 0.66, 0.47)[label % 3], 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)


def text_size(image: Picture, style: DrawingStyle = DEFAULT_STYLE) -> int:
    """Returns the height of letters that reads well when the picture is shown as a whole."""
    if style.text_size is not None:
        return style.text_size
    return int(
        np.clip(round((image.shape[0] * image.shape[1]) ** 0.5 / 45), _SMALLEST_TEXT, _LARGEST_TEXT)
    )


def _draw_boxes(
    canvas: Picture,
    boxes: NDArray[np.floating],
    colours: Sequence[Colour],
    line_width: int | None,
) -> None:
    """Draws outlines, last first, thinner around objects that a full line would hide."""
    usual = max(2, round(text_size(canvas) / 12))
    # Far outside, OpenCV's coordinates would overflow.
    limit = 4 * max(canvas.shape)
    corners = np.nan_to_num(boxes).clip(-limit, limit).round().astype(int).tolist()
    for n in reversed(range(len(corners))):
        x1, y1, x2, y2 = corners[n]
        thin = max(1, min(x2 - x1, y2 - y1) // 24)
        width = line_width or min(usual, thin)
        cv2.rectangle(canvas, (x1, y1), (max(x1, x2 - 1), max(y1, y2 - 1)), colours[n], width)


def _draw_captions(
    canvas: Picture,
    boxes: NDArray[np.floating],
    captions: Sequence[str],
    colours: Sequence[Colour],
    style: DrawingStyle,
) -> list[_Rectangle]:
    """Writes captions where there is room, first ones first; returns the places written on."""
    font = _font(size := text_size(canvas, style))
    drawn = Image.fromarray(canvas)
    pen = ImageDraw.Draw(drawn)
    pad = max(1, size // 5)
    line = size + 2 * pad
    everything = style.labels == "all"
    crowded = len(captions) >= _CROWDED and not everything
    corners: list[_Rectangle] = np.nan_to_num(boxes).astype(int).tolist()
    # A label may lie on a large object, but should not hide a small one.
    small = [box for box in corners if box[3] - box[1] < 4 * line]
    taken: list[_Rectangle] = []
    for box, caption, colour in zip(corners, captions, colours, strict=True):
        length = int(pen.textlength(caption, font=font)) + 2 * pad
        if crowded and length > 1.5 * (box[2] - box[0]):
            continue
        places = _caption_places(box, (length, line), canvas.shape[:2])
        free = [p for p in places if not any(_meet(p, other) for other in taken)]
        clear = [p for p in free if not any(_meet(p, other) for other in small)]
        best = clear or free or (places if everything else [])
        if not best:
            continue
        taken.append(best[0])
        x1, y1, x2, y2 = best[0]
        pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour)
        middle = (x1 + pad, (y1 + y2) // 2)
        pen.text(middle, caption, fill=_ink(colour), font=font, anchor="lm")
    canvas[:] = np.asarray(drawn)
    return taken


def _caption_places(
    box: _Rectangle, size: tuple[int, int], frame: tuple[int, ...]
) -> list[_Rectangle]:
    """Rectangles of `size` (width, height) at a box, inside the picture, best first."""
    length, line = size
    height, width = frame
    x = max(0, min(box[0], width - length))
    right = max(0, min(box[2] - length, width - length))
    spots = [(x, box[1] - line), (x, box[1]), (x, box[3]), (right, box[1] - line)]
    spots += [(right, box[3]), (x, box[3] - line)]
    inside = [(x, y) for x, y in spots if 0 <= y <= height - line]
    inside = inside or [(x, max(0, min(box[1], height - line)))]
    return [(x, y, x + length, y + line) for x, y in inside]


def _draw_legend(
    canvas: Picture, rows: Sequence[tuple[str, Colour]], size: int, busy: Sequence[_Rectangle]
) -> None:
    """Writes names beside their colours on a dark panel in the corner that hides least.

    Where the panel would take too much of the picture it is left out.
    """
    font = _font(size)
    height, width = canvas.shape[:2]
    line, pad = round(size * 1.5), size // 2
    length = max(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(t, font) for t, _ in rows)
    w, h = int(length) + 3 * size, pad + line * len(rows)
    if w * h > _LEGEND_SHARE * width * height:
        return
    panels = [
        (x, y, x + w, y + h)
        for y in (pad, max(pad, height - h - pad))
        for x in (pad, max(pad, width - w - pad))
    ]
    left, top, right, bottom = min(panels, key=lambda p: sum(_meet(p, other) for other in busy))
    window = canvas[top:bottom, left:right]
    window[:] = window // 4 + 12
    drawn = Image.fromarray(canvas)
    pen = ImageDraw.Draw(drawn)
    for n, (text, colour) in enumerate(rows):
        x, y = left + pad, top + pad // 2 + n * line + line // 2
        pen.rectangle((x, y - size // 2, x + size, y + size // 2), fill=colour)
        pen.text((x + 3 * size // 2, y), text, fill=(255, 255, 255), font=font, anchor="lm")
    canvas[:] = np.asarray(drawn)


def _meet(a: _Rectangle, b: _Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _ink(background: Colour) -> Colour:
    """Black or white, whichever is easier to read on a colour (ITU-R BT.601 luma)."""
    red, green, blue = background
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


@functools.lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along, so no machine is without it."""
    return ImageFont.truetype(
        Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size
    )
