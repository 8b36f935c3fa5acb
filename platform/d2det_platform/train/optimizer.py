"""The optimiser that a training configuration describes."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from d2det.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Returns an optimiser of everything in `model` that learns, norms and biases alike."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "adamw":
        return AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
