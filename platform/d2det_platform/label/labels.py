"""Reads committed labels in flat memory, and writes files of any size beside them."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from d2det_platform.label.layout import LABELS, Run
from d2det_platform.label.plan import Plan
from d2det_platform.store import RunStore

BATCH = 256
"""Pictures held at once: of 100 objects with masks each, a few megabytes."""


def committed(store: RunStore, run: Run) -> frozenset[str]:
    """Returns the names of the label files that are there."""
    return frozenset(store.names(LABELS))


def label_batches(store: RunStore, run: Run, plan: Plan) -> Iterator[pa.Table]:
    """Yields all labels in the order of the plan, some rows at a time."""
    for shard in plan.shards:
        file = pq.ParquetFile(io.BytesIO(store.read(run.layout.part(shard.index))))
        for batch in file.iter_batches(BATCH):
            yield pa.Table.from_batches([batch])


def label_rows(store: RunStore, run: Run, plan: Plan) -> Iterator[dict[str, Any]]:
    """Yields all labels as dictionaries."""
    for table in label_batches(store, run, plan):
        yield from table.to_pylist()


@contextlib.contextmanager
def output_file(store: RunStore, name: str) -> Iterator[IO[bytes]]:
    """Yields a file that appears as `name` when it is complete, and not at all on an error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        with path.open("wb") as file:
            yield file
        store.upload(name, path)
