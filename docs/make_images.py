"""Makes the pictures of README and documentation.

    python docs/make_images.py                      # the made scene with its exact annotations
    python docs/make_images.py demo_out/aerial/RUN  # and what a finished demonstration found

The second form takes what `make demo` left, so its pictures show weights that were trained for some
minutes on made scenes, and nothing better.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from d2det import rng
from d2det.data.masks import encode_crop
from d2det.data.synthetic import CATEGORIES, Scene
from d2det.structures import Rle
from d2det.visualize import draw_objects
from d2det_platform.demo.data import PIXELS_PER_METRE

OUT = Path(__file__).parent / "images"
SIZE = (640, 1280)
"""Height and width of the made scene that is shown; its left half is shown plain."""
_WIDTH = 1400
_QUALITY = 80


def main() -> None:
    """Writes docs/images."""
    OUT.mkdir(exist_ok=True)
    _write("made-scene.jpg", made_scene())
    if len(sys.argv) > 1:
        run = Path(sys.argv[1])
        _write("scene.jpg", _read(run / "scene.jpg")[:900, :_WIDTH])
        _write("predictions.jpg", _read(run / "train" / "report" / "predictions.png"))


def made_scene() -> NDArray[np.uint8]:
    """Returns a made scene, (H, W, 3) uint8 RGB: plain on the left, annotated on the right."""
    height, width = SIZE
    scene = Scene(rng.key(0, "scene", "large"), width, height, PIXELS_PER_METRE * 1.6)
    picture, objects = scene.whole()
    objects = [member for member in objects if member.x >= width // 2]
    boxes = [(o.x, o.y, o.x + o.mask.shape[1], o.y + o.mask.shape[0]) for o in objects]
    masks = [Rle(size=SIZE, counts=encode_crop(o.mask, o.x, o.y, height, width)) for o in objects]
    names = [category.name for category in CATEGORIES]
    labels = [member.label for member in objects]
    return draw_objects(picture, np.array(boxes, float), labels, names, masks=masks)


def _read(path: Path) -> NDArray[np.uint8]:
    picture = cv2.imread(str(path))
    if picture is None:
        raise FileNotFoundError(path)
    return np.ascontiguousarray(picture[..., ::-1]).astype(np.uint8)


def _write(name: str, picture: NDArray[np.uint8]) -> None:
    if picture.shape[1] > _WIDTH:
        height = round(picture.shape[0] * _WIDTH / picture.shape[1])
        picture = cv2.resize(picture, (_WIDTH, height), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(OUT / name), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])


if __name__ == "__main__":
    main()
