"""How many pictures of each global batch every rank takes, decided from measured speeds.

The step of synchronous training ends when the slowest rank ends, so the best integer split is the
one whose largest (pictures / speed) is smallest. The global batch, and with it the learning rate,
never changes: only who computes which part of it.

Pure functions: measurements in, decisions out. Who measures and who obeys is the loop's business.
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

REPLAN_GAIN = 0.0275
"""A new plan must promise a step at least this much shorter. Below it, uncertain speeds would move
pictures back and forth: of 64 ranks, the one estimated slowest by chance promises 2 %."""
PASS_COST = 4 / 3
"""What a share in several passes costs more: a forward pass without backward for each."""
STRAGGLER = 1.25
"""A rank that takes so many times the median of the ranks is named in the log."""


@dataclass(frozen=True)
class RankSpeed:
    """What one rank can do.

    images_per_s: pictures a second in forward and backward, waiting for others excluded.
    max_images: most pictures the rank may take in one step.
    images_per_pass: pictures that fit its memory at once; more take several passes.
    """

    images_per_s: float
    max_images: int
    images_per_pass: int | None = None

    def __post_init__(self) -> None:
        if not self.images_per_s > 0:
            raise ValueError(f"images_per_s must be positive, got {self.images_per_s}")
        if self.max_images < 0:
            raise ValueError(f"max_images must not be negative, got {self.max_images}")

    def seconds(self, images: int) -> float:
        """Returns how long `images` pictures take."""
        passes = self.images_per_pass is not None and images > self.images_per_pass
        return images / self.images_per_s * (PASS_COST if passes else 1.0)


@dataclass(frozen=True)
class BatchPlan:
    """Pictures of each global batch per rank; rank r takes the r-th consecutive slice."""

    images_per_rank: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.images_per_rank or min(self.images_per_rank) < 0:
            raise ValueError(f"a plan needs counts >= 0, got {self.images_per_rank}")

    @property
    def global_batch(self) -> int:
        """Pictures of one step over all ranks."""
        return sum(self.images_per_rank)

    def slice(self, rank: int, batch_size: int) -> slice:
        """Returns the part of a global batch of `batch_size` pictures that `rank` computes.

        The last batch of an epoch may be short: its pictures are dealt in the plan's proportions
        (largest remainder first), so no rank waits for a rank that got them all.
        """
        counts = self.images_per_rank
        if batch_size != self.global_batch:
            counts = _proportional(batch_size, counts)
        start = sum(counts[:rank])
        return slice(start, start + counts[rank])


def equal_plan(global_batch: int, ranks: int) -> BatchPlan:
    """Returns the split for ranks of equal or unknown speed; the first ranks take the rest."""
    share, rest = divmod(global_batch, ranks)
    return BatchPlan(tuple(share + (rank < rest) for rank in range(ranks)))


def best_plan(global_batch: int, speeds: Sequence[RankSpeed]) -> BatchPlan:
    """Returns the split of `global_batch` whose slowest rank is fastest.

    Exact: dealing pictures one by one to the rank that would finish its share first minimises the
    largest finishing time, since every rank's time grows with its count.

    Raises:
        ValueError: the ranks' memory together holds fewer than `global_batch` pictures.
    """
    room = sum(speed.max_images for speed in speeds)
    if room < global_batch:
        raise ValueError(
            f"a global batch of {global_batch} pictures does not fit: {len(speeds)} workers hold "
            f"{room} at most; add workers, lower --train.global-batch or use accumulation"
        )
    counts = [0] * len(speeds)
    queue = [(speed.seconds(1), rank) for rank, speed in enumerate(speeds) if speed.max_images]
    heapq.heapify(queue)
    for _ in range(global_batch):
        _, rank = heapq.heappop(queue)
        counts[rank] += 1
        if counts[rank] < speeds[rank].max_images:
            heapq.heappush(queue, (speeds[rank].seconds(counts[rank] + 1), rank))
    return BatchPlan(tuple(counts))


def step_time(plan: BatchPlan, speeds: Sequence[RankSpeed]) -> float:
    """Returns the seconds of a step under `plan`: those of its slowest rank."""
    return max(_times(plan, speeds))


def replan(current: BatchPlan, speeds: Sequence[RankSpeed]) -> BatchPlan:
    """Returns a better plan where it gains more than REPLAN_GAIN, else `current` itself."""
    candidate = best_plan(current.global_batch, speeds)
    gain = 1 - step_time(candidate, speeds) / step_time(current, speeds)
    return candidate if gain > REPLAN_GAIN else current


def stragglers(plan: BatchPlan, speeds: Sequence[RankSpeed]) -> tuple[int, ...]:
    """Returns the ranks that the others wait for: those well above the median time of a step."""
    times = _times(plan, speeds)
    busy = [time for time in times if time > 0]
    limit = STRAGGLER * statistics.median(busy)
    return tuple(rank for rank, time in enumerate(times) if time > limit)


def _times(plan: BatchPlan, speeds: Sequence[RankSpeed]) -> list[float]:
    return [speed.seconds(count) for count, speed in zip(plan.images_per_rank, speeds, strict=True)]


def _proportional(total: int, weights: Sequence[int]) -> tuple[int, ...]:
    """`total` dealt in proportion to `weights`, by largest remainder, ties to the first."""
    whole = sum(weights)
    counts = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda r: -(total * weights[r] % whole))
    for rank in by_remainder[: total - sum(counts)]:
        counts[rank] += 1
    return tuple(counts)
