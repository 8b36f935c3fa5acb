"""Starts a network from weights for other classes: everything but what is bound to classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from d2det.checkpoints.names import require_equal
from d2det.checkpoints.weights import read_weights
from d2det.models.detector import D2Det
from d2det.structures import Category

logger = logging.getLogger(__name__)

_CLASS_SPECIFIC = ("classification.logits.", "mask.logits.", "mask.scoring.ious.")


def start_from(model: D2Det, path: Path | str, categories: Sequence[Category]) -> tuple[str, ...]:
    """Copies weights from the file at `path` into `model` and returns what it left untouched.

    categories: those `model` is to learn, in label order. Where the file has the same names in the
    same order, everything is copied; else layers with one row a class keep their random start.
    A mask branch that the file lacks keeps its random start as well; one that `model` lacks is not
    used. Any other difference is a ValueError.
    """
    weights = read_weights(path)
    wanted = model.state_dict()
    same_classes = [c.name for c in weights.categories] == [c.name for c in categories]
    fresh = {
        name
        for name in wanted
        if (not same_classes and name.startswith(_CLASS_SPECIFIC))
        or (name.startswith("mask.") and name not in weights.tensors)
    }
    useful = {
        name: tensor
        for name, tensor in weights.tensors.items()
        if name not in fresh and not (model.mask is None and name.startswith("mask."))
    }
    if not same_classes:
        useful = {n: t for n, t in useful.items() if not n.startswith(_CLASS_SPECIFIC)}
    require_equal(
        useful,
        {name: tensor for name, tensor in wanted.items() if name not in fresh},
        f"{path} ({weights.preset.name}) does not fit this network",
    )
    with torch.no_grad():
        for name, tensor in useful.items():
            wanted[name].copy_(tensor)
    logger.info(
        "started from %s (%s): %d tensors copied, %d keep their random start%s",
        path,
        weights.preset.name,
        len(useful),
        len(fresh),
        f": {', '.join(sorted(fresh))}" if fresh else "",
    )
    return tuple(sorted(fresh))
