"""The network a run starts with: the preset's, for the data's classes, from given weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from d2det import rng
from d2det.checkpoints.transfer import start_from
from d2det.checkpoints.trunks import load_trunk
from d2det.models.build import build_detector
from d2det.models.detector import D2Det
from d2det.structures import Category
from d2det_platform.train.options import TrainOptions


def build_model(options: TrainOptions, categories: Sequence[Category]) -> D2Det:
    """Returns the network with the weights step 0 starts from, the same on every rank."""
    config = options.model.model_copy(update={"num_classes": len(categories)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(options.train.seed, "weights"))
        model = build_detector(config)
    if options.init is not None:
        start_from(model, options.init, categories)
    elif options.trunk is not None:
        load_trunk(model, options.trunk)
    return model.to(memory_format=torch.channels_last).train()
