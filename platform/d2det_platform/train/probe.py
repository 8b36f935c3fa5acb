"""A short look at what the ranks can do before the first step: speed, and pictures that fit.

Two small batches of the largest input are computed and dropped. Weights, buffers and random draws
stay as they were, so a run that is measured is the run that is not.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from d2det.config import TrainConfig
from d2det.data.coco import CocoDataset
from d2det.data.loader import TrainingLoader
from d2det.structures import TrainingBatch
from d2det_platform.train.balance import Balance
from d2det_platform.train.gradient import GlobalGradient
from d2det_platform.train.memory import PeakMemory
from d2det_platform.train.options import TrainOptions
from d2det_platform.train.plan import RankSpeed
from d2det_platform.train.ranks import Ranks

logger = logging.getLogger(__name__)

REPEATS = 2
"""Timed runs of each batch, of which the faster counts; one more before them warms up."""
SAFETY = 0.85
"""Share of the free memory that is planned with: pictures differ in their objects."""


@dataclass(frozen=True)
class Probe:
    """What was measured.

    images_per_s: pictures a second, forward and backward, of the larger batch.
    image_bytes: memory of one picture more.
    max_images: pictures that fit at once.
    """

    images_per_s: float
    image_bytes: int
    max_images: int


def first_plan(
    balance: Balance,
    gradient: GlobalGradient,
    dataset: CocoDataset,
    options: TrainOptions,
    ranks: Ranks,
    devices: Sequence[dict[str, Any]],
) -> None:
    """Probes all ranks where that is of use, gives `balance` its plan and `gradient` its passes."""
    if options.train.global_batch < 2 or not (balance.is_measured or options.cluster.gpu):
        return
    processes = Counter(device["host"] for device in devices)[devices[ranks.rank]["host"]]
    probes: list[Probe] = ranks.gather(
        ranks.together(lambda: _probe(gradient, dataset, options, ranks, processes))
    )
    limits = [options.cluster.images_per_pass or found.max_images for found in probes]
    gradient.images_per_pass = limits[ranks.rank]
    balance.begin(
        [
            RankSpeed(found.images_per_s, options.train.global_batch, limit)
            for found, limit in zip(probes, limits, strict=True)
        ]
    )
    if ranks.is_first:
        _tell(probes, limits, balance.plan.images_per_rank)


def measure(
    gradient: GlobalGradient,
    small: TrainingBatch,
    large: TrainingBatch,
    *,
    memory: PeakMemory,
    forget: Callable[[], None],
    processes: int,
) -> Probe:
    """Returns speed and memory of this rank; takes part in no collective.

    Args:
        gradient: the network.
        small, large: batches of one and of more pictures, on the rank's device.
        memory: of the device.
        forget: drops gradients.
        processes: training processes that share the machine's memory.
    """
    gradient.compute_alone(small)
    forget()
    _, low = _measured(gradient, small, memory, forget)
    seconds, high = _measured(gradient, large, memory, forget)
    image_bytes = max((high - low) // max(len(large) - len(small), 1), 1)
    room = int(SAFETY * memory.free_bytes(processes))
    return Probe(
        images_per_s=len(large) / seconds,
        image_bytes=image_bytes,
        max_images=max(room // image_bytes, 1),
    )


def _tell(probes: Sequence[Probe], limits: Sequence[int], shares: Sequence[int]) -> None:
    """Says what was measured, and which ranks have too little memory for their share at once."""
    figures = ", ".join(
        f"{found.images_per_s:.2f} images/s at {found.image_bytes / 1e6:.0f} MB each"
        for found in probes
    )
    logger.info("probe: %s; pictures per step %s", figures, tuple(shares))
    for rank, (share, limit) in enumerate(zip(shares, limits, strict=True)):
        if share > limit:
            logger.warning(
                "rank %d holds %d pictures at once: its %d take several passes, a third longer",
                rank,
                limit,
                share,
            )


def _probe(
    gradient: GlobalGradient,
    dataset: CocoDataset,
    options: TrainOptions,
    ranks: Ranks,
    processes: int,
) -> Probe:
    """Measures this rank on the first pictures, the same for all ranks, at the largest input."""
    train: TrainConfig = options.train
    if train.short_sides is not None:
        largest = train.short_sides[1]
        train = train.model_copy(update={"short_sides": (largest, largest)})
    loader = TrainingLoader(dataset, options.input, train, num_threads=1)
    small = next(loader.batches(0, share=lambda size: slice(0, 1)))
    large = next(loader.batches(0, share=lambda size: slice(0, min(2, size))))
    loader.close()
    return measure(
        gradient,
        small.to(ranks.device),
        large.to(ranks.device),
        memory=PeakMemory(ranks.device),
        forget=gradient.forget,
        processes=processes,
    )


def _measured(
    gradient: GlobalGradient,
    batch: TrainingBatch,
    memory: PeakMemory,
    forget: Callable[[], None],
) -> tuple[float, int]:
    """Seconds of the fastest of some runs of `batch`, and their peak memory."""
    memory.reset()
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        gradient.compute_alone(batch)
        if batch.images.pixels.is_cuda:
            torch.cuda.synchronize(batch.images.pixels.device)
        best = min(best, time.perf_counter() - started)
        forget()
    return best, memory.peak_bytes()
