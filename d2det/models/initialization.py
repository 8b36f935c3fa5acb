"""Random initial weights of layers, as the released code draws them; every bias starts at zero."""

from __future__ import annotations

from torch import nn

Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear


def normal(*layers: Layer, std: float) -> None:
    """Draws weights from a normal distribution, for layers whose output should start near zero."""
    for layer in layers:
        nn.init.normal_(layer.weight, std=std)
        _zero_bias(layer)


def xavier(*layers: Layer) -> None:
    """Draws weights that keep the variance of values and gradients alike (Glorot, uniform)."""
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        _zero_bias(layer)


def kaiming(*layers: Layer) -> None:
    """Draws weights that keep the variance of gradients through ReLUs (He, normal, fan out)."""
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        _zero_bias(layer)


def zero(*layers: Layer) -> None:
    """Makes layers say nothing at first."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        _zero_bias(layer)


def _zero_bias(layer: Layer) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
