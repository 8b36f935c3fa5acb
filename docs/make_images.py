"""Makes the pictures of README and documentation from a finished demonstration.

    make demo
    python docs/make_images.py demo_out/aerial/RUN

They are what the demonstration left, made smaller: made scenes, and what weights trained on them
for some minutes found.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

OUT = Path(__file__).parent / "images"
_WIDTH = 1400
_QUALITY = 82
_SCENE_PART = (0, 0, 1400, 900)
"""x, y, width, height of the part of the large scene that is shown, in its own pixels."""


def main() -> None:
    """Writes docs/images."""
    run = Path(sys.argv[1])
    OUT.mkdir(exist_ok=True)
    x, y, width, height = _SCENE_PART
    scene = cv2.imread(str(run / "scene.jpg"))
    _write("scene.jpg", scene[y : y + height, x : x + width])
    _write("predictions.jpg", cv2.imread(str(run / "train" / "report" / "predictions.png")))
    _write("training.jpg", cv2.imread(str(run / "train" / "report" / "training.png")))


def _write(name: str, picture: NDArray[np.uint8]) -> None:
    height = round(picture.shape[0] * _WIDTH / picture.shape[1])
    if picture.shape[1] > _WIDTH:
        picture = cv2.resize(picture, (_WIDTH, height), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(OUT / name), picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])


if __name__ == "__main__":
    main()
