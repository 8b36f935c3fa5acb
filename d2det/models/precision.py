"""The one rule of precision: boxes, scores and losses are float32 at least, whatever computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def wide(x: Tensor) -> Tensor:
    """Returns x (any shape) in float32; a float64 network, for exact comparisons, stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def narrow(x: Tensor, following: nn.Module) -> Tensor:
    """Returns x (any shape) in the type in which `following`, the layer behind the first, computes.

    The first layer keeps float32 weights in a network of half precision: bfloat16 has eight bits
    for a normalised pixel, which is one of 256 values around some mean, and rounds half of them.
    """
    return x.to(next(following.parameters()).dtype)


def answer(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """Returns layer(x) in float32 at least, where `layer` is the last of a branch.

    Such layers keep float32 weights in a network of half precision (`prepare_for_inference`): what
    they give is ranked, thresholded and decoded, and scores of eight bits tie. Their cost is small.
    """
    return wide(layer(x.to(layer.weight.dtype)))
