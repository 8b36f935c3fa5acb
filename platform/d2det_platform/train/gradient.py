"""From this rank's share of a batch to the gradient of the whole batch.

Every loss is a sum over a count of the whole batch. So shares of ranks add up exactly, however the
batch is cut, and so do the passes in which a rank computes a share that its memory cannot hold.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from d2det.models.detector import D2Det
from d2det.models.losses import LossTerm, reduce_losses
from d2det.structures import ImageBatch, TrainingBatch
from d2det_platform.train.ranks import Ranks
from d2det_platform.train.speed import Stopwatch

_HAS_NEW_NAME = "forward_sync_buffers" in signature(DistributedDataParallel.__init__).parameters
_NO_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if _HAS_NEW_NAME else "broadcast_buffers": False
}
"""Buffers are statistics that never change here: no need to send them with every pass."""


class GlobalGradient:
    """The network with its losses, data parallel over `ranks`."""

    def __init__(
        self,
        model: D2Det,
        ranks: Ranks,
        *,
        stopwatch: Stopwatch,
        dtype: torch.dtype = torch.float32,
        images_per_pass: int | None = None,
    ) -> None:
        """Wraps `model`; every rank must do so at the same time.

        Args:
            model: the network, on the rank's device.
            ranks: who computes together.
            stopwatch: is told when this rank computes.
            dtype: of convolutions and matrix products; below float32 by autocast.
            images_per_pass: most pictures computed at once. A larger share is cut into passes, with
                a forward pass more for each, since the counts must be known before the first
                backward pass; None: no limit.
        """
        self.images_per_pass = images_per_pass
        self._ranks = ranks
        self._stopwatch = stopwatch
        self._terms = _Terms(model, ranks.device, dtype)
        self._parallel: nn.Module = self._terms
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(stopwatch.mark)
        if ranks.count > 1:
            self._parallel = DistributedDataParallel(
                self._terms, gradient_as_bucket_view=True, **_NO_BUFFERS
            )

    def compute(self, batch: TrainingBatch, *, scale: float = 1.0) -> dict[str, Tensor]:
        """Leaves `scale` times the global gradient in the parameters, the same on all ranks.

        Returns:
            This rank's share of every loss, scalars without graph; shares of all ranks add up to
            the losses of the whole batch.
        """
        parts = list(_passes(batch, self.images_per_pass))
        self._stopwatch.start(len(batch))
        counts = self._count(parts) if len(parts) > 1 else None
        losses: dict[str, Tensor] = {}
        for i, part in enumerate(parts):
            with self._without_sync(i + 1 < len(parts)):
                terms = self._parallel(part)
                if counts is None:
                    counts = self._sum(_counts(terms))
                shares = reduce_losses(terms, _known(counts))
                # DDP averages over ranks where the shares should be summed, hence the count.
                total = torch.stack(tuple(shares.values())).sum()
                total.mul(scale * self._ranks.count).backward()
            for name, share in shares.items():
                losses[name] = losses.get(name, 0) + share.detach()
        return losses

    def compute_alone(self, batch: TrainingBatch) -> None:
        """Does the work of `compute` without the other ranks; what it leaves is to be dropped."""
        self._stopwatch.start(len(batch))
        shares = reduce_losses(self._terms(batch), lambda counts: counts)
        torch.stack(tuple(shares.values())).sum().backward()

    def forget(self) -> None:
        """Drops the gradient."""
        self._terms.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _count(self, parts: list[TrainingBatch]) -> Tensor:
        """The counts of the whole batch: what is sampled depends on keys and weights alone."""
        mine = torch.stack([_counts(self._terms(part)) for part in parts]).sum(0)
        return self._sum(mine)

    def _sum(self, counts: Tensor) -> Tensor:
        self._stopwatch.pause()
        counts = self._ranks.sum(counts)
        self._stopwatch.resume()
        return counts

    @contextlib.contextmanager
    def _without_sync(self, wanted: bool) -> Iterator[None]:
        if wanted and isinstance(self._parallel, DistributedDataParallel):
            with self._parallel.no_sync():
                yield
        else:
            yield


class _Terms(nn.Module):
    """The network up to its loss terms: what DDP wraps."""

    def __init__(self, model: D2Det, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.device = device
        self.dtype = dtype

    def forward(self, batch: TrainingBatch) -> dict[str, LossTerm]:
        """Returns the terms of `batch`."""
        enabled = self.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(self.device.type, self.dtype if enabled else None, enabled=enabled):
            return self.model.loss_terms(batch)


def _known(counts: Tensor) -> Callable[[Tensor], Tensor]:
    """An all-reduce that has already happened."""
    return lambda _: counts


def _counts(terms: dict[str, LossTerm]) -> Tensor:
    """(T, 2) float64 counts of T terms."""
    return torch.stack([term.counts for term in terms.values()])


def _passes(batch: TrainingBatch, limit: int | None) -> Iterator[TrainingBatch]:
    """The batch in parts of at most `limit` pictures, one part at least."""
    if limit is None or len(batch) <= limit:
        yield batch
        return
    for start in range(0, len(batch), limit):
        part = slice(start, start + limit)
        yield TrainingBatch(
            images=ImageBatch(batch.images.pixels[part], batch.images.sizes[part]),
            targets=batch.targets[part],
            image_keys=batch.image_keys[part],
        )
