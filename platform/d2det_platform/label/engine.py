"""Who does the work: the cluster, or this process alone. The driver knows only this interface."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import pyarrow as pa

from d2det_platform.label.commit import commit_shard, recommit_shard
from d2det_platform.label.inspect import inspect_all
from d2det_platform.label.layout import Run
from d2det_platform.label.models import cost_model
from d2det_platform.label.sources import Item
from d2det_platform.label.units import UnitRef
from d2det_platform.label.work import UnitResult, Worker
from d2det_platform.store import RunStore

CALLS_PER_WORKER = 2
"""Units a worker has in hand: one is predicted, the next decoded. What a kill can cost."""


class Engine(Protocol):
    """Carries out the parts of a run."""

    def inspect(self, run: Run, batches: Iterator[list[Item]]) -> Iterable[pa.Table]:
        """Yields the manifest rows of batches of items, in order."""

    def predict(self, run: Run, refs: Sequence[UnitRef], attempt: int) -> Iterator[UnitResult]:
        """Does units, in any order, and yields what became of each."""

    def commit(self, run: Run, shard: int, attempt: int) -> None:
        """Commits a shard whose units are staged; it may be done later than this returns."""

    def drain(self) -> None:
        """Waits until all shards are committed."""

    def close(self) -> None:
        """Gives up what it holds."""


class LocalEngine:
    """Works in this process, with one model: for tests and for comparison."""

    def __init__(self, store: RunStore, *, num_threads: int = 1) -> None:
        self._store, self._num_threads = store, num_threads

    def inspect(self, run: Run, batches: Iterator[list[Item]]) -> Iterable[pa.Table]:
        """Yields the manifest rows of batches of items, in order."""
        return inspect_all(run.options, cost_model(run.options, run.model), batches)

    def predict(self, run: Run, refs: Sequence[UnitRef], attempt: int) -> Iterator[UnitResult]:
        """Does units in order and yields what became of each."""
        worker = Worker(self._store, run, num_threads=self._num_threads)
        with ThreadPoolExecutor(CALLS_PER_WORKER) as pool:
            begun: deque[Future[UnitResult]] = deque()
            try:
                for ref in refs:
                    if len(begun) == CALLS_PER_WORKER:
                        yield begun.popleft().result()
                    begun.append(pool.submit(worker.run, ref, attempt))
                while begun:
                    yield begun.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)
                worker.close()

    def commit(self, run: Run, shard: int, attempt: int) -> None:
        """Commits a shard."""
        commit(self._store, run, shard, attempt)

    def drain(self) -> None:
        """Has nothing to wait for."""

    def close(self) -> None:
        """Holds nothing."""


def commit(store: RunStore, run: Run, shard: int, attempt: int) -> None:
    """Commits what an attempt found in a shard."""
    if attempt == 1:
        commit_shard(store, run, shard)
    else:
        recommit_shard(store, run, shard, attempt)
