"""Turns the staged units of a shard into its Parquet file of labels.

The file is a function of the plan and of what the model found; it is written once under a name made
of the run and the shard. Committing twice, from two machines at once, or after a crash anywhere in
between therefore ends in one and the same file, and no rename of many files has to be atomic.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from d2det import __version__
from d2det.inference.merge import merge_windows
from d2det.inference.windows import Window, WindowDetections
from d2det_platform.label.layout import Run
from d2det_platform.label.plan import read_manifest
from d2det_platform.label.schema import (
    FOUND,
    LABELS,
    SCHEMA_VERSION,
    detections_array,
    empty_detections,
    error_value,
    read_detections,
    seams_row,
)
from d2det_platform.label.units import is_scene, num_units
from d2det_platform.store import RunStore

ROW_GROUP = 1024


class IncompleteShardError(RuntimeError):
    """Units of the shard are not staged yet."""


def commit_shard(store: RunStore, run: Run, shard: int) -> None:
    """Writes the labels of a shard whose units are all staged, if they are not there.

    Raises:
        IncompleteShardError: a unit is missing.
    """
    part = run.layout.part(shard)
    if not store.exists(part):
        table = labels_of(store, run, shard)
        # Not replaced if another driver was faster: what readers saw once stays.
        store.create(part, encode_labels(table, run))
    store.remove(run.layout.staged_folder(shard))


def recommit_shard(store: RunStore, run: Run, shard: int, attempt: int) -> None:
    """Puts what a later attempt found in place of the errors of a shard; the file is replaced."""
    part = run.layout.part(shard)
    before = pq.read_table(io.BytesIO(store.read(part)), schema=LABELS)
    again = labels_of(store, run, shard, attempt)
    is_again = pc.is_in(before.column("uri"), value_set=again.column("uri").combine_chunks())
    table = pa.concat_tables([before.filter(pc.invert(is_again)), again])
    store.write(part, encode_labels(table, run))
    store.remove(run.layout.staged_folder(shard, attempt))


def labels_of(store: RunStore, run: Run, shard: int, attempt: int = 1) -> pa.Table:
    """Returns the LABELS rows of a shard, from its manifest and its staged units.

    Raises:
        IncompleteShardError: a unit is missing.
    """
    manifest = read_manifest(store, run, shard, attempt)
    staged = [
        _read_unit(store, run.layout.staged(shard, unit, attempt))
        for unit in range(num_units(manifest))
    ]
    found = pa.concat_tables([FOUND.empty_table(), *staged]).combine_chunks()
    pictures = manifest.to_pylist()
    scenes = {row for row, picture in enumerate(pictures) if is_scene(picture)}
    of_scene = np.isin(found.column("row").to_numpy(), sorted(scenes))
    parts = [
        found.filter(pa.array(~of_scene)),
        _merged_scenes(found.filter(pa.array(of_scene)), pictures, run),
        _refused(pictures, run, attempt),
    ]
    rows = pa.concat_tables(parts).combine_chunks().sort_by("row")
    if rows.column("row").to_pylist() != list(range(len(manifest))):
        raise RuntimeError(f"the staged units of shard {shard} do not hold each picture once")
    columns = {**_columns(manifest), **_columns(rows.drop_columns(["width", "height"]))}
    return pa.Table.from_arrays([columns[name] for name in LABELS.names], schema=LABELS)


def encode_labels(table: pa.Table, run: Run) -> bytes:
    """Returns LABELS rows as a Parquet file, sorted by URI; equal rows give equal bytes."""
    table = table.combine_chunks().sort_by("uri").combine_chunks()
    names = ",".join(f"{category.id}:{category.name}" for category in run.model.categories)
    lineage = {
        "d2det.schema_version": SCHEMA_VERSION,
        "d2det.version": __version__,
        "d2det.run": run.key,
        "d2det.model": run.model.name,
        "d2det.model_digest": run.model.digest,
        "d2det.categories": names,
    }
    sink = io.BytesIO()
    table = table.replace_schema_metadata(lineage)
    pq.write_table(table, sink, compression="zstd", row_group_size=ROW_GROUP)
    return sink.getvalue()


def _read_unit(store: RunStore, name: str) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(store.read(name)), schema=FOUND)
    except FileNotFoundError:
        raise IncompleteShardError(f"{name} is missing") from None


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))


def _merged_scenes(found: pa.Table, pictures: Sequence[dict[str, Any]], run: Run) -> pa.Table:
    """One row a scene, from one row a window. A scene with an unreadable window is an error."""
    labels = {category.id: k for k, category in enumerate(run.model.categories)}
    numbers = found.column("row").to_numpy()
    parts = [FOUND.empty_table()]
    for row in np.unique(numbers).tolist():
        windows = found.filter(pa.array(numbers == row)).combine_chunks()
        size = (pictures[row]["height"], pictures[row]["width"])
        errors = [error for error in windows.column("error").to_pylist() if error is not None]
        if errors:
            parts.append(_found_row(row, size, run, error=errors[0]))
            continue
        merged = merge_windows(_window_detections(windows, size, labels), size)
        parts.append(
            _found_row(row, size, run, found=merged.detections, seams=seams_row(merged.audit))
        )
    return pa.concat_tables(parts)


def _window_detections(
    windows: pa.Table, size: tuple[int, int], labels: dict[int, int]
) -> list[WindowDetections]:
    places = windows.select(["y", "x", "height", "width"]).to_pylist()
    lists = windows.column("detections").chunk(0)
    return [
        WindowDetections(Window(**place), read_detections(lists[i].values, size, labels))
        for i, place in enumerate(places)
    ]


def _found_row(
    row: int,
    size: tuple[int, int],
    run: Run,
    *,
    found: Any = None,
    error: dict[str, Any] | None = None,
    seams: dict[str, int] | None = None,
) -> pa.Table:
    detections = detections_array([found or empty_detections(size)], run.model.categories)
    values: dict[str, Any] = {"row": row, "x": 0, "y": 0, "width": size[1], "height": size[0]}
    values.update(error=error, seams=seams)
    arrays = [
        detections if f.name == "detections" else pa.array([values[f.name]], f.type) for f in FOUND
    ]
    return pa.Table.from_arrays(arrays, schema=FOUND)


def _refused(pictures: Sequence[dict[str, Any]], run: Run, attempt: int) -> pa.Table:
    """Rows of the pictures that the plan refused."""
    refused = [i for i, picture in enumerate(pictures) if picture["reason"] is not None]
    count = len(refused)
    errors = [
        error_value(p["stage"], p["reason"], p["detail"], attempt)
        for p in (pictures[i] for i in refused)
    ]
    columns: dict[str, Any] = {
        "row": pa.array(refused, pa.int32()),
        **{name: pa.array([0] * count, pa.int32()) for name in ("x", "y", "width", "height")},
        "detections": detections_array([empty_detections()] * count, run.model.categories),
        "error": pa.array(errors, FOUND.field("error").type),
        "seams": pa.nulls(count, FOUND.field("seams").type),
    }
    return pa.Table.from_arrays([columns[name] for name in FOUND.names], schema=FOUND)
