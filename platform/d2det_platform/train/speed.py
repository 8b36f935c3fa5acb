"""How fast this rank computes, its waits for other ranks cut out."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class Stopwatch:
    """Seconds of a step this rank spent computing.

    A step is forward, one collective (the loss normalisers), backward, and a wait for the gradients
    of slower ranks. `pause` and `resume` stand around the collective; `mark` is called whenever a
    gradient of this rank is complete, so the last mark is where its own work ends. On a GPU the
    times are events in its stream, read once the step is over.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._num_images = 0
        self._times: list[float | torch.cuda.Event] = []
        self._last: float | torch.cuda.Event | None = None
        self._images = 0

    def start(self, images: int) -> None:
        """Begins a step of `images` pictures on this rank."""
        self._images = images
        self._times = [self._now()]

    def pause(self) -> None:
        """Begins a wait for other ranks."""
        self._times.append(self._now())

    def resume(self) -> None:
        """Ends a wait for other ranks."""
        self._times.append(self._now())

    def mark(self, _: Tensor) -> None:
        """Notes that a gradient is complete; a hook of every parameter."""
        self._last = self._now()

    def stop(self) -> None:
        """Ends a step; on a GPU the caller has waited for it (it looks at the gradient's norm)."""
        if self._images and self._last is not None:
            start, pause, resume = self._times
            seconds = self._between(start, pause) + self._between(resume, self._last)
            self._seconds += seconds
            self._num_images += self._images

    def peek(self) -> float | None:
        """Returns the images/s since the last `take`, or None if this rank had no picture in it."""
        return self._num_images / self._seconds if self._seconds else None

    def take(self) -> float | None:
        """Returns what `peek` does, and begins anew."""
        speed = self.peek()
        self._seconds, self._num_images = 0.0, 0
        return speed

    def _now(self) -> float | torch.cuda.Event:
        if not self._is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @staticmethod
    def _between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
        if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
            return float(start.elapsed_time(end)) / 1000
        assert isinstance(start, float)
        assert isinstance(end, float)
        return end - start
