"""Spreads the work over a Ray cluster: Ray Data streams units through a pool of workers.

What travels through Ray is two numbers a unit, and what became of it; pixels never do. A worker
reads, decodes and predicts its own units: decoding on other nodes would copy pixels (0.9 MB for
what is 0.15 MB as JPEG) into the object store and out again, and fill it whenever a GPU falls
behind. So the object store stays empty, and `decoded_mb` bounds the heap of a worker.

Ray Data's own checkpoints are not used: their unit is a block of rows, not a picture with an error,
and their files have random names, so they give neither error rows nor files equal byte for byte.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from d2det_platform.cluster import connect
from d2det_platform.label.engine import CALLS_PER_WORKER, commit
from d2det_platform.label.inspect import inspect_all
from d2det_platform.label.layout import Run
from d2det_platform.label.models import cost_model
from d2det_platform.label.sources import Item
from d2det_platform.label.suspects import Suspects
from d2det_platform.label.units import UnitRef
from d2det_platform.label.work import UnitResult, Worker
from d2det_platform.store import RunStore

logger = logging.getLogger(__name__)

_INSPECTED_HERE = 2
"""Batches whose headers the driver reads itself, before a task elsewhere would have started."""
UNITS_PER_TASK = 16
"""At most; fewer where there are few units, so that workers end together."""
_TASKS_PER_WORKER = 16
_QUEUED_CALLS = 4
"""Tasks sent to a worker, of which two run: it need not wait for the driver."""
OBJECT_STORE_BYTES = 256 << 20
"""Of a cluster started here: nothing large passes through it."""
_LONG_S = 10 * 24 * 3600
_CPUS_BESIDE_GPU, _CPUS_ALONE = 2, 2


class RayEngine:
    """Works on the cluster of RAY_ADDRESS, or on one it starts on this machine.

    Raises:
        ValueError: no such device in the cluster.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._started = not ray.is_initialized()
        if self._started:
            connect(object_store_bytes=OBJECT_STORE_BYTES, has_dashboard=False, log_to_driver=False)
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        self._commits: list[ray.ObjectRef] = []
        # One process that stays: what a task would import takes longer than a commit.
        self._committer = _Committer.remote(url)  # type: ignore[attr-defined]

    def inspect(self, run: Run, batches: Iterator[list[Item]]) -> Iterable[pa.Table]:
        """Yields the manifest rows of batches of items, in order; a few are read ahead."""
        first = list(itertools.islice(batches, _INSPECTED_HERE))
        yield from inspect_all(run.options, cost_model(run.options, run.model), iter(first))
        ahead = 2 * int(ray.cluster_resources().get("CPU", 1))
        pending: deque[ray.ObjectRef] = deque()
        for items in batches:
            pending.append(_inspect.remote(run, items))
            if len(pending) >= ahead:
                yield ray.get(pending.popleft())
        while pending:
            yield ray.get(pending.popleft())

    def predict(self, run: Run, refs: Sequence[UnitRef], attempt: int) -> Iterator[UnitResult]:
        """Does units and yields what became of each."""
        pool = _pool_of(run)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = False
        # Waiting for a machine is no failure.
        context.execution_no_progress_timeout_s = _LONG_S
        per_task = len(refs) // (_TASKS_PER_WORKER * pool.max_workers)
        blocks = _blocks(refs, min(max(per_task, 1), UNITS_PER_TASK))
        done = ray.data.from_arrow(blocks).map_batches(
            _UnitActor,
            fn_constructor_kwargs={
                "url": self._url,
                "run": run,
                "attempt": attempt,
                "threads": run.options.work.threads or pool.cpus,
                "weights": _shipped_weights(run),
            },
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=pool.cpus,
            num_gpus=pool.gpus or None,
            compute=ActorPoolStrategy(
                min_size=pool.min_workers,
                max_size=pool.max_workers,
                max_tasks_in_flight_per_actor=_QUEUED_CALLS,
                max_concurrent_calls_per_actor=CALLS_PER_WORKER,
                enable_true_multi_threading=True,
            ),
        )
        for batch in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                yield UnitResult(**row)

    def commit(self, run: Run, shard: int, attempt: int) -> None:
        """Commits a shard on some node, and notices errors of earlier ones."""
        self._commits.append(self._committer.commit.remote(run, shard, attempt))
        done, self._commits = ray.wait(
            self._commits, num_returns=len(self._commits), timeout=0, fetch_local=False
        )
        ray.get(done)

    def drain(self) -> None:
        """Waits until all shards are committed."""
        ray.get(self._commits)
        self._commits = []

    def close(self) -> None:
        """Leaves the cluster; one that was started here ends."""
        if self._started:
            ray.shutdown()


class _Pool:
    """Size of the pool and resources of a worker."""

    def __init__(self, *, workers: tuple[int, int], cpus: int, gpus: int) -> None:
        self.min_workers, self.max_workers = workers
        self.cpus, self.gpus = cpus, gpus


def _pool_of(run: Run) -> _Pool:
    work, there = run.options.work, ray.cluster_resources()
    cpus_there, gpus_there = int(there.get("CPU", 1)), int(there.get("GPU", 0))
    device = run.options.device
    if device.startswith("cuda") and not gpus_there:
        raise ValueError(f"--device {device}: the cluster has no GPU")
    gpus = 1 if gpus_there and device != "cpu" and run.options.weights else 0
    usual = _CPUS_BESIDE_GPU if gpus else _CPUS_ALONE
    cpus = work.cpus_per_worker or max(1, min(usual, cpus_there))
    fewest, most = work.workers
    most = most or max(fewest, gpus_there if gpus else cpus_there // cpus)
    return _Pool(workers=(fewest, most), cpus=cpus, gpus=gpus)


def _blocks(refs: Sequence[UnitRef], per_task: int) -> list[pa.Table]:
    numbers = np.array([(ref.shard, ref.unit) for ref in refs], np.int64).reshape(-1, 2)
    table = pa.table({"shard": numbers[:, 0], "unit": numbers[:, 1]})
    # Copies: a slice would be pickled with the whole table behind it.
    return [
        table.take(np.arange(i, min(i + per_task, len(refs))))
        for i in range(0, len(refs), per_task)
    ]


def _shipped_weights(run: Run) -> ray.ObjectRef | None:
    """The weights file in the object store, where nodes may not see the driver's files."""
    is_alone = sum(node["Alive"] for node in ray.nodes()) == 1
    if not run.options.weights or is_alone:
        return None
    return ray.put(np.fromfile(run.options.weights, np.uint8))


class _UnitActor:
    """A worker in the pool: holds one model and does units in two threads."""

    def __init__(
        self, *, url: str, run: Run, attempt: int, threads: int, weights: ray.ObjectRef | None
    ) -> None:
        self._attempt = attempt
        options = run.options
        if weights is not None and not Path(options.weights).is_file():
            with tempfile.NamedTemporaryFile(suffix=".safetensors", delete=False) as file:
                file.write(ray.get(weights).data)
            options = options.model_copy(update={"weights": file.name})
        store = RunStore(url)
        # Nothing is written down for workers that never died: it would cost a file a unit.
        is_again = ray.get_runtime_context().was_current_actor_reconstructed
        self._worker = Worker(
            store,
            replace(run, options=options),
            suspects=Suspects(store, run.layout, attempt) if is_again else None,
            num_threads=threads,
            batch_pixels=options.work.batches().get(_accelerator()),
        )

    def __call__(self, batch: pa.Table) -> pa.Table:
        results = [
            asdict(self._worker.run(UnitRef(**row), self._attempt)) for row in batch.to_pylist()
        ]
        return pa.Table.from_pylist(results)


def _accelerator() -> str:
    labels: dict[str, str] = ray.get_runtime_context().get_node_labels()
    return labels.get("ray.io/accelerator-type", "")


@ray.remote(num_cpus=1, max_retries=-1)  # type: ignore[untyped-decorator]
def _inspect(run: Run, items: list[Item]) -> Any:
    (table,) = inspect_all(run.options, cost_model(run.options, run.model), iter([items]))
    return table


# No CPU of its own: workers may have reserved them all, and it has little to do.
@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)  # type: ignore[untyped-decorator]
class _Committer:
    """Commits shards, one after the other."""

    def __init__(self, url: str) -> None:
        self._store = RunStore(url)

    def commit(self, run: Run, shard: int, attempt: int) -> None:
        """Commits a shard."""
        commit(self._store, run, shard, attempt)
