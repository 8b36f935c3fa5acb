"""What single ranks ask for and all ranks must do at the same step.

Requests travel in the sum of the losses that every step makes anyway. So agreeing costs nothing,
and no rank can wait for an agreement in which another one does not take part.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor


class Request(IntEnum):
    """One kind of request."""

    STOP = 0
    """Save, and end; somebody wants the run to stop here."""
    FAIL = 1
    """End: a rank met something it cannot go on after."""
    LOOK = 2
    """Look whether a node is about to leave (itself something all ranks must do)."""


class Requests:
    """The requests this rank has made and not yet seen granted."""

    def __init__(self) -> None:
        self._open: set[Request] = set()
        self.problem: str | None = None

    def make(self, request: Request) -> None:
        """Asks all ranks for `request` at the next step."""
        self._open.add(request)

    def fail(self, problem: str) -> None:
        """Asks all ranks to end the run because of `problem` on this one."""
        self.problem = self.problem or problem
        self.make(Request.FAIL)

    def encode(self, like: Tensor) -> Tensor:
        """Returns (len(Request),) ones and zeros of dtype and device of `like`, to be summed."""
        return torch.tensor([request in self._open for request in Request]).to(like)

    def decode(self, sums: list[float]) -> frozenset[Request]:
        """Returns what any rank asked for, given the summed encodings; those are granted now."""
        granted = frozenset(request for request in Request if sums[request] > 0)
        self._open -= granted
        return granted
