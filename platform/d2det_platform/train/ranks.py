"""This process among the workers of one training, and the few collectives it takes part in."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from d2det_platform.train.outcome import FatalError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Rank, number of ranks, and the device this rank computes on."""

    rank: int
    count: int
    device: torch.device

    @staticmethod
    def current(*, gpu: bool) -> Ranks:
        """Returns this process's place; a process outside any group is the only rank."""
        device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
        if not dist.is_initialized():
            return Ranks(0, 1, device)
        return Ranks(dist.get_rank(), dist.get_world_size(), device)

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the run's files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum of `values`, any shape, over all ranks."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def first_decides(self, value: int) -> int:
        """Returns rank 0's `value` on every rank."""
        if self.count == 1:
            return value
        holder = torch.tensor([value], dtype=torch.int64, device=self.device)
        dist.broadcast(holder, src=0)
        return int(holder.item())

    def gather(self, value: Any) -> list[Any]:
        """Returns every rank's `value`, in rank order, on every rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def together(self, action: Callable[[], T]) -> T:
        """Returns the result of `action`, which must take part in no collective itself.

        Raises:
            FatalError: it failed on some rank; raised on all of them, so that none waits.
        """
        result: T | None = None
        problem: str | None = None
        try:
            result = action()
        except (ValueError, OSError) as error:
            problem = f"{platform.node()}: {error}"
        problems = sorted({text for text in self.gather(problem) if text})
        if problems:
            raise FatalError("; ".join(problems))
        return result  # type: ignore[return-value]
