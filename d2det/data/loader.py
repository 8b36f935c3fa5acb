"""Training batches, prepared ahead by threads.

Threads rather than processes: decoding, resizing, rasterising and normalising happen in OpenCV,
NumPy and torch, which let go of the interpreter lock, so threads keep as many cores busy; and
nothing is copied, neither the index to workers nor pictures back (no /dev/shm, which containers
limit to 64 MB), and there is nothing to fork inside a Ray worker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from d2det import rng
from d2det.config import InputConfig, TrainConfig
from d2det.data.batches import collate, largest_input
from d2det.data.index import DatasetIndex
from d2det.data.sampler import epoch_batches
from d2det.data.samples import Sample
from d2det.data.transforms import draw_input, training_example
from d2det.structures import Target, TrainingBatch

Example = tuple[NDArray[np.uint8], Target]
MIN_BATCHES_AHEAD = 2
"""Batches under way besides the one handed out, however large a batch is."""
Share = Callable[[int], slice]
"""Given the pictures of a global batch, the consecutive part of them that this rank computes."""


class TrainingData(Protocol):
    """What the loader needs of a data set; reading a sample must be safe from several threads."""

    @property
    def index(self) -> DatasetIndex:
        """The annotations."""

    def __getitem__(self, position: int) -> Sample:
        """The picture at `position` with its objects."""


class TrainingLoader:
    """Batches of one rank, in the order of the sampler, from any step of any epoch."""

    def __init__(
        self,
        data: TrainingData,
        config: InputConfig,
        train: TrainConfig,
        *,
        num_threads: int = 2,
        pin_memory: bool = False,
    ) -> None:
        """Starts the threads.

        Args:
            data: the training pictures.
            config: size and normalisation of the input.
            train: augmentation, seed and global batch.
            num_threads: pictures prepared at the same time.
            pin_memory: leave batches in page-locked memory, from which a GPU copies while it
                computes.
        """
        if num_threads < 1:
            raise ValueError(f"num_threads must be at least 1, got {num_threads}")
        # OpenCV's own threads would compete with ours: one picture a core is the better split.
        cv2.setNumThreads(1)
        self._data, self._config, self._train = data, config, train
        self._pin_memory = pin_memory
        self._num_threads = num_threads
        self._pictures = ThreadPoolExecutor(num_threads, "picture")
        self._batches = ThreadPoolExecutor(1, "batch")

    def batches(
        self, epoch: int, *, first_step: int = 0, share: Share | None = None
    ) -> Iterator[TrainingBatch]:
        """Yields this rank's part of every step of `epoch` from `first_step` on.

        Close the iterator (or drop it) to change `share`: what was prepared ahead is discarded.

        Raises:
            ValueError: a picture cannot be read; the message names the file.
        """
        order = epoch_batches(
            self._data.index.image_sizes,
            global_batch=self._train.global_batch,
            seed=self._train.seed,
            epoch=epoch,
        )
        ahead: deque[_Prepared] = deque()
        try:
            for step in range(first_step, len(order)):
                ahead.append(self._prepare(order[step], epoch, step, share))
                if self._is_enough(ahead):
                    yield ahead.popleft().batch.result()
            while ahead:
                yield ahead.popleft().batch.result()
        finally:
            for prepared in ahead:
                prepared.cancel()

    def close(self) -> None:
        """Ends the threads; batches under way are finished and dropped."""
        self._batches.shutdown(wait=False, cancel_futures=True)
        self._pictures.shutdown(wait=False, cancel_futures=True)

    def _is_enough(self, ahead: deque[_Prepared]) -> bool:
        """Whether the threads have work for the time the first batch is computed on.

        Batches count at least one each: a rank without pictures must not prepare a whole epoch.
        """
        num_pictures = sum(max(len(prepared.examples), 1) for prepared in ahead)
        return len(ahead) > MIN_BATCHES_AHEAD and num_pictures >= 2 * self._num_threads

    def _prepare(
        self, members: NDArray[np.int64], epoch: int, step: int, share: Share | None
    ) -> _Prepared:
        train, index = self._train, self._data.index
        config = draw_input(self._config, train, rng.key(train.seed, epoch, "step", step))
        size = largest_input(index.image_sizes[members], config)
        positions = (members[share(len(members))] if share else members).tolist()
        ids = index.image_ids[positions].tolist()
        keys = [rng.key(train.seed, epoch, image_id) for image_id in ids]
        examples = [
            self._pictures.submit(self._example, position, config, key)
            for position, key in zip(positions, keys, strict=True)
        ]
        return _Prepared(examples, self._batches.submit(self._join, examples, keys, config, size))

    def _example(self, position: int, config: InputConfig, key: int) -> Example:
        return training_example(self._data[position], config, self._train, key)

    def _join(
        self,
        examples: list[Future[Example]],
        keys: list[int],
        config: InputConfig,
        size: tuple[int, int],
    ) -> TrainingBatch:
        ready = [example.result() for example in examples]
        return collate(ready, keys, config, min_size=size, pin_memory=self._pin_memory)


@dataclass(frozen=True)
class _Prepared:
    """One step under way."""

    examples: list[Future[Example]]
    batch: Future[TrainingBatch]

    def cancel(self) -> None:
        self.batch.cancel()
        for example in self.examples:
            example.cancel()
