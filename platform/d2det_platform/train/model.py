"""The network a run starts with: the preset's, for the data's classes, with its first weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2det import rng
from d2det.checkpoints.transfer import start_from
from d2det.checkpoints.trunks import load_trunk
from d2det.data.coco import CocoDataset
from d2det.inference.preprocess import resize_to_input, to_batch
from d2det.models.build import build_detector
from d2det.models.detector import D2Det
from d2det.models.normalization import measure_statistics
from d2det.structures import Category
from d2det_platform.store import local_copy
from d2det_platform.train.frozen import freeze
from d2det_platform.train.options import TrainOptions

MEASURED_PICTURES = 16
"""Training pictures, spread over the data, that set the statistics of a trunk without a past."""
MEASURED_SIDE_PX = 512
"""Of a larger picture, once resized, its middle counts; the whole would take gigabytes."""


def build_model(
    options: TrainOptions, categories: Sequence[Category], data: CocoDataset | None = None
) -> D2Det:
    """Returns the network with the weights step 0 starts from, the same on every rank.

    data: the training pictures, for a trunk that starts at random; None: it is not to be trained.
    """
    config = options.model.model_copy(update={"num_classes": len(categories)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(options.train.seed, "weights"))
        model = build_detector(config)
    if options.init is not None:
        with local_copy(options.init) as path:
            start_from(model, path, categories)
    elif options.trunk is not None:
        with local_copy(options.trunk) as path:
            load_trunk(model, path)
    elif data is not None:
        measure_statistics(model.backbone, _some_pictures(options, data))
    freeze(model, options.train.frozen)
    return model.to(memory_format=torch.channels_last).train()


def _some_pictures(options: TrainOptions, data: CocoDataset) -> Tensor:
    """Pixels (N, 3, H, W) of pictures spread over the data, at the size evaluation gives them."""
    config, count = options.input, min(MEASURED_PICTURES, len(data))
    positions = np.linspace(0, len(data) - 1, count).astype(int)
    images = [data.image(int(position)) for position in positions]
    return to_batch([_middle(resize_to_input(image, config)) for image in images], config).pixels


def _middle(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Of an image (H, W, 3) at most `MEASURED_SIDE_PX` each way."""
    top, left = (max(side - MEASURED_SIDE_PX, 0) // 2 for side in image.shape[:2])
    return image[top : top + MEASURED_SIDE_PX, left : left + MEASURED_SIDE_PX]
