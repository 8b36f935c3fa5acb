"""Everything a training step changes, and its form in a checkpoint.

Tensors travel as safetensors and numbers as JSON: nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

TENSORS = "state.safetensors"
NUMBERS = "state.json"
_SLOT = "optimizer."  # what the optimiser keeps for each parameter: momentum, running squares ...


class WeightAverage:
    """Exponential moving average of a model's parameters and buffers.

    The decay warms up as (1 + step) / (10 + step), so early averages forget the initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: t.detach().clone() for name, t in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average towards the model's weights after `step` (0-based)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        averaged, current = [], []
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                averaged.append(self.tensors[name])
                current.append(tensor)
            else:
                self.tensors[name].copy_(tensor)
        torch._foreach_lerp_(averaged, current, weight)


@dataclass
class TrainingState:
    """Model, optimiser, averaged weights and position; `progress` holds the JSON numbers.

    step: optimiser steps done.
    progress: numbers that later decisions need, such as the best metric so far.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    step: int = 0
    progress: dict[str, Any] = field(default_factory=dict)

    def files(self) -> dict[str, bytes]:
        """Returns the state as checkpoint files."""
        tensors = {name: t.detach().cpu().contiguous() for name, t in self._tensors()}
        numbers = {"step": self.step, "progress": self.progress}
        return {
            TENSORS: save_tensors(tensors),
            NUMBERS: json.dumps(numbers, sort_keys=True).encode(),
        }

    def restore(self, files: Mapping[str, bytes]) -> None:
        """Takes the state from checkpoint files.

        Raises:
            ValueError: the checkpoint belongs to another architecture or other options.
        """
        tensors = load_tensors(files[TENSORS])
        slots = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_SLOT)}
        expected = {name: tensor.shape for name, tensor in self._weights()}
        if {name: t.shape for name, t in tensors.items()} != expected:
            odd = sorted(tensors.keys() ^ expected.keys())[:3] or "shapes"
            raise ValueError(
                f"the run's checkpoint holds other weights than these options build ({odd}): "
                "use another --name, or the options the run was started with"
            )
        with torch.no_grad():
            for name, target in self._weights():
                target.copy_(tensors[name])
        parameters = dict(self.model.named_parameters())
        for name, tensor in slots.items():
            slot, _, parameter_name = name.removeprefix(_SLOT).partition(".")
            parameter = parameters[parameter_name]
            # The count of steps, a scalar, stays on the CPU, where it is read without waiting.
            value = tensor.to(parameter.device) if tensor.ndim else tensor
            self.optimizer.state[parameter][slot] = value
        numbers = json.loads(files[NUMBERS])
        self.step, self.progress = numbers["step"], numbers["progress"]

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._weights()
        for name, parameter in self.model.named_parameters():
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    yield f"{_SLOT}{slot}.{name}", value

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.model.state_dict().items():
            yield f"model.{name}", tensor
        if self.average is not None:
            for name, tensor in self.average.tensors.items():
                yield f"average.{name}", tensor
