"""Which pictures make up which step: a pure function of (seed, epoch, step) over the index.

Nothing here knows workers or ranks. Ranks take their slice of each global batch by their plan, so
the training is the same for any number of them, before and after a restart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from d2det import rng


def epoch_batches(
    image_sizes: NDArray[np.int64], *, global_batch: int, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """Returns the steps of one epoch, each the positions of its pictures in the data set.

    Every picture comes exactly once. Pictures wider than high go together, and so do the others,
    because a batch is padded to its largest sides. What is left of both groups fills mixed steps
    at the end, the last of which may be short: losses are divided by what a step really holds, so
    it needs no padding, and ranks without a picture in it still take part.

    Args:
        image_sizes: (N, 2) rows (height, width).
        global_batch: pictures of a step over all ranks.
        seed: of the run.
        epoch: 0, 1, ...
    """
    if global_batch < 1:
        raise ValueError(f"global_batch must be at least 1, got {global_batch}")
    random = rng.generator(seed, epoch, "order")
    is_wide = image_sizes[:, 1] > image_sizes[:, 0]
    whole: list[NDArray[np.int64]] = []
    rest = []
    for group in (np.flatnonzero(is_wide), np.flatnonzero(~is_wide)):
        shuffled = random.permutation(group)
        cut = len(group) - len(group) % global_batch
        whole += list(shuffled[:cut].reshape(-1, global_batch))
        rest.append(shuffled[cut:])
    steps = [whole[i] for i in random.permutation(len(whole))]
    mixed = random.permutation(np.concatenate(rest))
    steps += [mixed[i : i + global_batch] for i in range(0, len(mixed), global_batch)]
    return steps


def steps_per_epoch(num_images: int, global_batch: int) -> int:
    """Returns the number of steps of an epoch, the same on all ranks."""
    return -(-num_images // global_batch)
