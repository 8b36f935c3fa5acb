"""A weights file as a model of the endpoint: the same `Predictor` as everywhere, twice.

One predicts masks, one does not; they share their weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from d2det.checkpoints.weights import load_detector
from d2det.inference.options import PredictOptions
from d2det.inference.predictor import Predictor, choose_device
from d2det.structures import Detections

USUAL_ASPECTS = (4 / 3, 16 / 9, 3 / 2, 1.0, 3 / 4, 9 / 16, 2 / 3)
"""Width over height of what cameras make."""


class WeightsModel:
    """The detector of a weights file."""

    def __init__(self, weights: Path, options: PredictOptions) -> None:
        device = choose_device(options.device)
        detector = load_detector(weights, device=device, precision=options.precision)
        self.has_masks = detector.preset.model.mask is not None and options.masks
        self._plain = Predictor(detector, options.model_copy(update={"masks": False}))
        self._full = Predictor(detector, options) if self.has_masks else self._plain
        self.device = device

    def predict(self, images: Sequence[NDArray[np.uint8]], *, masks: bool) -> list[Detections]:
        """Returns what is in each picture, (H, W, 3) uint8 RGB."""
        return (self._full if masks else self._plain).predict(images)

    def cost(self, height: int, width: int) -> int:
        """Returns the pixels that a picture of this size runs through the network."""
        return self._full.cost(height, width)

    def bucket(self, height: int, width: int) -> tuple[int, int]:
        """Returns the padded shape in which pictures of this size run."""
        return self._full.padded(height, width)

    def warm_up_sizes(self) -> list[tuple[int, int]]:
        """Returns a size for each padded shape of aspects from 1:3 to 3:1, usual ones first."""
        short = self._full.input.short_side
        sizes: dict[tuple[int, int], tuple[int, int]] = {}
        for aspect in (*USUAL_ASPECTS, *np.geomspace(1 / 3, 3, 200)):
            wide = aspect >= 1
            size = (short, round(short * aspect)) if wide else (round(short / aspect), short)
            sizes.setdefault(self.bucket(*size), size)
        return list(sizes.values())
