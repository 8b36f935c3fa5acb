"""The only door to inference: pictures in, detections in their own frame out.

The command line, evaluation, the labelling actors and the endpoint's replicas each hold a
Predictor, so they cannot disagree.

Letters: D detections, H x W pixels of the original picture.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from d2det.boxes import clip, rescale
from d2det.checkpoints.weights import LoadedDetector, load_detector
from d2det.inference.augment import detect_views, make_views
from d2det.inference.merge import Merged, merge_windows
from d2det.inference.options import PredictOptions
from d2det.inference.preprocess import (
    padded_size,
    resize_scale,
    resize_to_input,
    resized_size,
    to_batch,
)
from d2det.inference.windows import ArrayScene, SceneReader, cut_windows, predict_windows
from d2det.models.detector import D2Det
from d2det.structures import Category, Detections, RawDetections, Rle
from d2det_ops import masks_to_rle

Picture = NDArray[np.uint8]


class Predictor:
    """Predicts pictures of any size with one detector and one set of options."""

    def __init__(self, detector: LoadedDetector, options: PredictOptions | None = None) -> None:
        self.options = options or PredictOptions()
        self.categories: tuple[Category, ...] = detector.categories
        self.input = self.options.input_of(detector.preset.input)
        self.device = next(detector.model.parameters()).device
        self._model = _configured(detector.model, self.options)

    @classmethod
    def load(cls, weights: Path | str, options: PredictOptions | None = None) -> Predictor:
        """Returns a predictor with the detector of a weights file.

        Raises:
            ValueError: With what is wrong with the file or the device, in one line.
        """
        options = options or PredictOptions()
        device = choose_device(options.device)
        return cls(load_detector(weights, device=device, precision=options.precision), options)

    @torch.inference_mode()
    def predict(self, images: Sequence[Picture]) -> list[Detections]:
        """Returns what is in each picture, (H, W, 3) uint8 RGB, in its own frame, best first.

        Pictures of one padded size run together; a picture is predicted as if it came alone.
        """
        tiled = [i for i, image in enumerate(images) if self._is_tiled(image)]
        whole = sorted(set(range(len(images))) - set(tiled))
        found = {i: self.predict_scene(ArrayScene(images[i])).detections for i in tiled}
        found.update(zip(whole, self._predict_whole([images[i] for i in whole]), strict=True))
        return [found[i] for i in range(len(images))]

    @torch.inference_mode()
    def predict_scene(self, scene: SceneReader) -> Merged:
        """Returns what is in a scene of any size, read and predicted window by window.

        Without the option `tile` the scene is one window.
        """
        tile = self.options.tile or max(scene.size)
        windows = cut_windows(scene.size, tile=tile, overlap=min(self.options.overlap, tile - 1))
        height, width = self.padded(windows[0].height, windows[0].width)
        batch = max(1, self.options.batch_pixels // (height * width))
        results = predict_windows(self._predict_whole, scene, windows, batch=batch)
        return merge_windows(list(results), scene.size)

    def cost(self, height: int, width: int) -> int:
        """Returns the pixels that a picture of this size runs through the network."""
        if self.options.tile is not None and max(height, width) > self.options.tile:
            windows = cut_windows(
                (height, width), tile=self.options.tile, overlap=self.options.overlap
            )
            padded = self.padded(windows[0].height, windows[0].width)
            return len(windows) * padded[0] * padded[1]
        padded = self.padded(height, width)
        return padded[0] * padded[1]

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Returns the shape (height, width) in which a picture of this size runs, uncut."""
        sides = self.input.short_side, self.input.long_side
        return padded_size(*resized_size(height, width, *sides))

    def _is_tiled(self, image: Picture) -> bool:
        return self.options.tile is not None and max(image.shape[:2]) > self.options.tile

    def _predict_whole(self, images: Sequence[Picture]) -> list[Detections]:
        """Detections of each picture, none of which is cut into windows."""
        if self.options.tta:
            return [self._predict_augmented(image) for image in images]
        found: dict[int, Detections] = {}
        for members in self._batches(images):
            resized = [resize_to_input(images[i], self.input) for i in members]
            raw = self._model.detect(to_batch(resized, self.input).to(self.device))
            found.update(
                (i, self._in_original(each, images[i].shape[:2]))
                for i, each in zip(members, raw, strict=True)
            )
        return [found[i] for i in range(len(images))]

    def _batches(self, images: Sequence[Picture]) -> Iterator[list[int]]:
        """Yields positions of pictures that share a padded size, within the budget of pixels."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, image in enumerate(images):
            groups[self.padded(*image.shape[:2])].append(i)
        for (height, width), members in groups.items():
            limit = max(1, self.options.batch_pixels // (height * width))
            for start in range(0, len(members), limit):
                yield members[start : start + limit]

    def _predict_augmented(self, image: Picture) -> Detections:
        views = make_views(image, self.input, device=self.device)
        return self._in_original(detect_views(self._model, views), image.shape[:2])

    def _in_original(self, raw: RawDetections, size: tuple[int, ...]) -> Detections:
        """Detections of a resized picture in the frame of the original one of size (H, W)."""
        height, width = size
        index = (raw.scores > (self.options.score_threshold or 0)).nonzero()[:, 0]
        return in_original(
            raw.select(index[: self.options.max_detections]),
            size=(height, width),
            scale=resize_scale(height, width, self.input.short_side, self.input.long_side),
        )


def in_original(raw: RawDetections, *, size: tuple[int, int], scale: float) -> Detections:
    """Returns detections of a picture that was resized by `scale`, in its frame of `size` (H, W).

    They come to the CPU; boxes are clipped to the picture, masks encoded in it.
    """
    height, width = size
    boxes = rescale(raw.boxes, 1 / scale)
    masks, mask_scores = None, None
    if raw.masks is not None and raw.mask_scores is not None:
        # Of the whole box, also where it passes the picture: its mask lies on that grid.
        encoded = masks_to_rle(raw.masks, boxes, height=height, width=width)
        masks, mask_scores = tuple(Rle(**mask) for mask in encoded), raw.mask_scores.cpu()
    return Detections(
        boxes=clip(boxes, height, width).cpu(),
        scores=raw.scores.cpu(),
        labels=raw.labels.cpu(),
        size=size,
        masks=masks,
        mask_scores=mask_scores,
    )


def choose_device(name: str) -> torch.device:
    """Returns the device called `name`; "auto" is a GPU where there is one.

    Raises:
        ValueError: There is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {name!r} is not available: {str(error).splitlines()[0]}"
        ) from None
    return device


def _configured(model: D2Det, options: PredictOptions) -> D2Det:
    """The network with the limits of `options`; it shares its weights with `model`."""
    inference = model.config.inference
    changes: dict[str, object] = {"masks": inference.masks and options.masks}
    if options.score_threshold is not None:
        # What scores less can neither appear nor suppress anything, so it need not be regressed.
        changes["score_threshold"] = options.score_threshold
    if (limit := options.max_detections) is not None:
        changes["max_detections"] = limit
        changes["max_regressed"] = max(limit, inference.max_regressed)
    configured = copy.copy(model)
    configured.config = model.config.model_copy(
        update={"inference": inference.model_copy(update=changes)}
    )
    return configured
