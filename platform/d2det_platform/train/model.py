"""The network a run starts with: the preset's, for the data's classes, with its first weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from d2det import rng
from d2det.checkpoints.transfer import start_from
from d2det.checkpoints.trunks import load_trunk
from d2det.data.batches import collate
from d2det.data.coco import CocoDataset
from d2det.data.transforms import training_example
from d2det.models.build import build_detector
from d2det.models.detector import D2Det
from d2det.models.normalization import measure_statistics
from d2det.structures import Category
from d2det_platform.store import local_copy
from d2det_platform.train.frozen import freeze
from d2det_platform.train.options import TrainOptions

MEASURED_PICTURES = 16
"""Training pictures, spread over the data, that set the statistics of a trunk without a past."""


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
    """Pixels (N, 3, H, W) of pictures spread over the data, as evaluation would resize them."""
    config, count = options.input, min(MEASURED_PICTURES, len(data))
    positions = [int(position) for position in np.linspace(0, len(data) - 1, count)]
    plain = options.train.model_copy(update={"flip": 0.0, "vertical_flip": 0.0})
    examples = [training_example(data[position], config, plain, key=0) for position in positions]
    return collate(examples, positions, config).images.pixels
