"""Labels the pictures of the error table again: a later attempt with a small plan of its own."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from d2det_platform.label.driver import Outcome, label_units
from d2det_platform.label.engine import Engine
from d2det_platform.label.finish import finish
from d2det_platform.label.labels import committed
from d2det_platform.label.layout import SUCCESS, Run
from d2det_platform.label.models import cost_model
from d2det_platform.label.plan import Plan, Shard, write_shard
from d2det_platform.label.progress import Progress
from d2det_platform.label.sources import Item
from d2det_platform.label.units import UnitLimits, assign_units
from d2det_platform.store import RunStore


def retry_run(
    store: RunStore, run: Run, plan: Plan, engine: Engine, reasons: Sequence[str]
) -> tuple[Outcome, int]:
    """Tries pictures with errors again; returns the outcome and how many were tried.

    Raises:
        ValueError: the run is not complete yet.
    """
    if len(committed(store, run)) < len(plan.shards):
        raise ValueError(f"{store.url} is not labelled to its end yet: run d2det label first")
    failed = {shard.index: _failed(store, run, shard, reasons) for shard in plan.shards}
    failed = {index: rows for index, rows in failed.items() if len(rows)}
    tried = sum(len(rows) for rows in failed.values())
    if not failed:
        return Outcome(finish(store, run, plan, run.options.output, None), 0), 0
    store.remove(SUCCESS)
    inferred = 0
    for attempt in sorted({_next_attempt(rows) for rows in failed.values()}):
        chosen = {i: rows for i, rows in failed.items() if _next_attempt(rows) == attempt}
        shards = [
            _replanned(store, run, engine, index, rows, attempt) for index, rows in chosen.items()
        ]
        progress = Progress(Plan(tuple(shards)))
        _, count = label_units(run, engine, shards, attempt=attempt, progress=progress)
        progress.close()
        inferred += count
    return Outcome(finish(store, run, plan, run.options.output, None), inferred), tried


def _failed(store: RunStore, run: Run, shard: Shard, reasons: Sequence[str]) -> pa.Table:
    """The label rows of a shard that hold an error of these reasons, of any if none are given."""
    import io

    import pyarrow.parquet as pq

    columns = ["uri", "name", "image_id", "error"]
    data = io.BytesIO(store.read(run.layout.part(shard.index)))
    table = pq.read_table(data, columns=columns)
    table = table.filter(table.column("error").is_valid())
    if reasons and len(table):
        reason = pc.struct_field(table.column("error"), "reason")
        table = table.filter(pc.is_in(reason, value_set=pa.array(reasons)))
    return table


def _next_attempt(rows: pa.Table) -> int:
    attempt = pc.struct_field(rows.column("error"), "attempt")
    return int(pc.max(attempt).as_py()) + 1


def _replanned(
    store: RunStore, run: Run, engine: Engine, index: int, rows: pa.Table, attempt: int
) -> Shard:
    """Looks at the pictures anew and gives them units of their own."""
    items = [
        Item(row["uri"], row["name"], row["image_id"]) for row in rows.sort_by("uri").to_pylist()
    ]
    (table,) = engine.inspect(run, iter([items]))
    cost = cost_model(run.options, run.model)
    table = assign_units(table, cost, UnitLimits.of(run.options))
    # What an attempt that died left belongs to another choice of pictures, perhaps.
    store.remove(run.layout.staged_folder(index, attempt))
    return write_shard(store, run, index, table, attempt=attempt)
