"""Cuts manifest rows into shards (committed together) and units (predicted together). Pure.

The cut is a function of the rows and the options alone, so every driver makes the same one, and a
name means the same work whoever says it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from d2det.inference.windows import Window
from d2det_platform.label.cost import CostModel
from d2det_platform.label.options import LabelOptions

_BYTES_PER_PIXEL = 3


@dataclass(frozen=True, order=True)
class UnitRef:
    """A unit: which shard of the plan, which unit of the shard."""

    shard: int
    unit: int


@dataclass(frozen=True)
class UnitLimits:
    """How much a unit may hold.

    network_pixels: through the network.  decoded_bytes: of pixels in memory.
    """

    network_pixels: int
    decoded_bytes: int

    @classmethod
    def of(cls, options: LabelOptions) -> UnitLimits:
        """Returns the limits that the options ask for."""
        return cls(options.unit_pixels, options.decoded_mb << 20)


def cut_shards(tables: Iterable[pa.Table], *, shard_pictures: int) -> Iterator[pa.Table]:
    """Yields the rows of each shard: consecutive ones, windows of a scene counting as pictures."""
    rest: list[pa.Table] = []
    weight = 0
    for table in tables:
        weights = np.maximum(table.column("windows").to_numpy(), 1).astype(np.int64)
        start = 0
        while start < len(weights):
            room = shard_pictures - weight
            # As many as fit; at least one, so that a scene of any size finds a shard.
            count = int(np.searchsorted(np.cumsum(weights[start:]), room, side="right"))
            if count == 0 and weight == 0:
                count = 1
            rest.append(table.slice(start, count))
            weight += int(weights[start : start + count].sum())
            start += count
            if start < len(weights) or weight >= shard_pictures:
                yield pa.concat_tables(rest)
                rest, weight = [], 0
    if weight:
        yield pa.concat_tables(rest)


def assign_units(shard: pa.Table, cost: CostModel, limits: UnitLimits) -> pa.Table:
    """Returns the rows of a shard with the units they belong to.

    Pictures of one network input share units, so batches are full; a scene has units of its own.
    """
    rows = shard.select(
        ["uri", "format", "width", "height", "cost", "windows", "reason"]
    ).to_pylist()
    first, count = [-1] * len(rows), [0] * len(rows)
    pictures = [i for i, row in enumerate(rows) if row["reason"] is None and not is_scene(row)]
    pictures.sort(key=lambda i: _order(rows[i], cost))
    unit, filled, held = -1, math.inf, math.inf
    for i in pictures:
        size = rows[i]["width"] * rows[i]["height"] * _BYTES_PER_PIXEL
        if filled + rows[i]["cost"] > limits.network_pixels or held + size > limits.decoded_bytes:
            unit, filled, held = unit + 1, 0, 0
        first[i], count[i] = unit, 1
        filled, held = filled + rows[i]["cost"], held + size
    for i, row in enumerate(rows):
        if row["reason"] is None and is_scene(row):
            per_unit = _windows_per_unit(row, cost, limits)
            first[i], count[i] = unit + 1, math.ceil(row["windows"] / per_unit)
            unit += count[i]
    return _with_columns(shard, first, count)


def _with_columns(shard: pa.Table, first: list[int], count: list[int]) -> pa.Table:
    for name, values in (("first_unit", first), ("num_units", count)):
        place = shard.schema.get_field_index(name)
        shard = shard.set_column(place, shard.schema.field(name), pa.array(values, pa.int32()))
    return shard


def is_scene(row: dict[str, Any]) -> bool:
    """Returns whether a picture is read by window, in several units."""
    return str(row["format"]).endswith("+scene")


def _order(row: dict[str, Any], cost: CostModel) -> tuple[int, ...]:
    """Pictures that batch together come together; sorting is stable, so else in their own order."""
    if "#row=" in row["uri"]:  # tables are read row by row
        return (1,)
    if cost.is_tiled(row["height"], row["width"]):
        return (2,)
    return (0, *cost.padded(row["height"], row["width"]))


def _windows_per_unit(row: dict[str, Any], cost: CostModel, limits: UnitLimits) -> int:
    each = row["cost"] // row["windows"]
    assert cost.tile is not None
    size = min(row["width"], cost.tile) * min(row["height"], cost.tile) * _BYTES_PER_PIXEL
    return int(max(1, min(limits.network_pixels // each, limits.decoded_bytes // size)))


def num_units(shard: pa.Table) -> int:
    """Returns how many units a shard has."""
    ends = np.add(shard.column("first_unit").to_numpy(), shard.column("num_units").to_numpy())
    return int(max(ends.max(initial=0), 0))


def rows_of_unit(shard: pa.Table, unit: int) -> list[int]:
    """Returns the positions in a shard of the pictures that a unit has a part in."""
    first = shard.column("first_unit").to_numpy()
    count = shard.column("num_units").to_numpy()
    return [int(i) for i in np.flatnonzero((first <= unit) & (unit < first + count))]


def windows_of_unit(row: dict[str, Any], unit: int, cost: CostModel) -> list[Window]:
    """Returns the windows of a scene that a unit predicts: an equal share, in order."""
    windows = cost.cut(row["height"], row["width"])
    part, parts = unit - row["first_unit"], row["num_units"]
    low, high = (len(windows) * k // parts for k in (part, part + 1))
    return windows[low:high]
