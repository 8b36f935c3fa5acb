"""The plan of a run: written once, shard by shard, and followed by every driver after that."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, astuple, dataclass
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from d2det_platform.label.layout import Run
from d2det_platform.label.models import cost_model
from d2det_platform.label.schema import MANIFEST
from d2det_platform.label.sources import Distinct, Item, batched, find_items, needs_distinct
from d2det_platform.label.units import UnitLimits, assign_units, cut_shards, num_units
from d2det_platform.store import RunStore

BATCH = 2048
"""Items whose headers are read together."""

Inspect = Callable[[Iterator[list[Item]]], Iterable[pa.Table]]
"""Reads headers: batches of items to their manifest rows, in the same order."""


@dataclass(frozen=True)
class Shard:
    """A shard of the plan. digest: sha256 of its manifest file."""

    index: int
    pictures: int
    units: int
    windows: int
    cost: int
    bytes: int
    refused: int
    digest: str


@dataclass(frozen=True)
class Plan:
    """All shards. repeated: items that named a picture again and are left out."""

    shards: tuple[Shard, ...]
    repeated: int = 0

    def total(self, name: str) -> int:
        """Returns the sum over shards of one of their numbers."""
        return sum(getattr(shard, name) for shard in self.shards)


def read_plan(store: RunStore, run: Run) -> Plan | None:
    """Returns the plan of a run; None while it has none that is complete."""
    try:
        content = json.loads(store.read(run.layout.plan))
    except FileNotFoundError:
        return None
    return Plan(tuple(Shard(**shard) for shard in content["shards"]), content["repeated"])


def make_plan(
    store: RunStore, run: Run, inspect: Inspect, *, seen: Callable[[int], None] = lambda _: None
) -> Plan:
    """Makes the plan of a run and writes it: manifests first, the list of them last.

    seen: told how many pictures more were looked at.

    Raises:
        ValueError: an input does not exist.
        StoreUnavailableError: a store does not answer.
    """
    options, cost = run.options, cost_model(run.options, run.model)
    limits = UnitLimits.of(options)
    shards: list[Shard] = []
    with tempfile.TemporaryFile() as spool:
        items, repeated = _distinct_items(run, spool)
        tables = _told(inspect(batched(items, BATCH)), seen)
        for table in cut_shards(tables, shard_pictures=options.shard_pictures):
            shards.append(write_shard(store, run, len(shards), assign_units(table, cost, limits)))
    if not shards:  # no pictures: still a valid, empty table of labels
        shards.append(write_shard(store, run, 0, MANIFEST.empty_table()))
    plan = Plan(tuple(shards), repeated)
    content = {"repeated": repeated, "shards": [asdict(shard) for shard in shards]}
    store.write(run.layout.plan, json.dumps(content).encode())
    return plan


def read_manifest(store: RunStore, run: Run, shard: int, attempt: int = 1) -> pa.Table:
    """Returns the manifest of a shard; of later attempts, that of the pictures that had failed."""
    return pq.read_table(io.BytesIO(store.read(run.layout.manifest(shard, attempt))))


def _distinct_items(run: Run, spool: IO[bytes]) -> tuple[Iterator[Item], int]:
    """The items of a run, each picture once, and how many came again.

    Where pictures may repeat, the items wait on disk until all are known: memory holds 16 bytes
    of each.
    """
    options = run.options
    items = find_items(options, jpeg2000=options.limits.jpeg2000)
    if not needs_distinct(options.inputs):
        return items, 0
    distinct = Distinct()
    for item in items:
        distinct.add(item)
        spool.write(json.dumps(astuple(item)).encode() + b"\n")
    spool.seek(0)
    again = distinct.repeated()
    stored = (Item(*json.loads(line)) for i, line in enumerate(spool) if i not in again)
    return stored, len(again)


def _told(tables: Iterable[pa.Table], seen: Callable[[int], None]) -> Iterator[pa.Table]:
    for table in tables:
        seen(len(table))
        yield table


def write_shard(
    store: RunStore, run: Run, index: int, table: pa.Table, *, attempt: int = 1
) -> Shard:
    """Writes the manifest of a shard, units assigned, and returns what the plan says of it."""
    sink = io.BytesIO()
    pq.write_table(table.combine_chunks(), sink, compression="zstd")
    store.write(run.layout.manifest(index, attempt), sink.getvalue())
    sums = {name: int(pc.sum(table.column(name)).as_py() or 0) for name in ("windows", "cost")}
    return Shard(
        index=index,
        pictures=len(table),
        units=num_units(table),
        bytes=int(pc.sum(table.column("bytes")).as_py() or 0),
        refused=len(table) - table.column("reason").null_count,
        digest=hashlib.sha256(sink.getvalue()).hexdigest(),
        **sums,
    )
