"""Shards and units hold each picture once and stay within their bounds, however rows arrive."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2det_platform.label.cost import CostModel
from d2det_platform.label.schema import MANIFEST
from d2det_platform.label.units import (
    UnitLimits,
    assign_units,
    cut_shards,
    num_units,
    rows_of_unit,
    windows_of_unit,
)

COST = CostModel(None, tile=100, overlap=20)
LIMITS = UnitLimits(network_pixels=40_000, decoded_bytes=100_000)


def row(number: int, width: int, height: int, kind: str) -> dict[str, Any]:
    sound = kind != "refused"
    return {
        "uri": f"file:///{number:05d}",
        "name": str(number),
        "format": "tiff+scene" if kind == "scene" else "png",
        "width": width,
        "height": height,
        "reason": None if sound else "corrupt",
        "cost": COST.pixels(height, width) if sound else 0,
        "windows": COST.windows(height, width) if sound else 0,
        "first_unit": -1,
        "num_units": 0,
    }


SIDES = st.integers(1, 400)
ROWS = st.lists(st.tuples(SIDES, SIDES, st.sampled_from(["plain", "plain", "refused", "scene"])))


def table(shapes: list[tuple[int, int, str]]) -> pa.Table:
    rows = [row(i, w + 200 * (kind == "scene"), h, kind) for i, (w, h, kind) in enumerate(shapes)]
    return pa.Table.from_pylist(rows, MANIFEST)


@given(ROWS, st.integers(1, 12))
@settings(max_examples=60)
def test_shards_hold_all_rows_in_order_however_they_arrive(
    shapes: list[tuple[int, int, str]], step: int
) -> None:
    whole = table(shapes)
    pieces = [whole.slice(i, step) for i in range(0, len(whole), step)]
    shards = list(cut_shards(pieces, shard_pictures=10))
    at_once = list(cut_shards([whole] if len(whole) else [], shard_pictures=10))
    assert [s.column("uri").to_pylist() for s in shards] == [
        s.column("uri").to_pylist() for s in at_once
    ]
    assert [u for s in shards for u in s.column("uri").to_pylist()] == whole.column(
        "uri"
    ).to_pylist()
    for shard in shards:
        assert len(shard) == 1 or np.maximum(shard.column("windows").to_numpy(), 1).sum() <= 10


@given(ROWS)
@settings(max_examples=60)
def test_units_hold_each_picture_and_each_window_once(shapes: list[tuple[int, int, str]]) -> None:
    shard = assign_units(table(shapes), COST, LIMITS)
    rows = shard.to_pylist()
    seen: list[int] = []
    windows: dict[int, list[Any]] = {}
    for unit in range(num_units(shard)):
        members = rows_of_unit(shard, unit)
        assert members
        if rows[members[0]]["format"].endswith("+scene"):
            (member,) = members
            windows.setdefault(member, []).extend(windows_of_unit(rows[member], unit, COST))
            continue
        seen += members
        cost = sum(rows[i]["cost"] for i in members)
        size = sum(3 * rows[i]["width"] * rows[i]["height"] for i in members)
        assert len(members) == 1 or (cost <= LIMITS.network_pixels and size <= LIMITS.decoded_bytes)
    sound = [i for i, r in enumerate(rows) if r["reason"] is None]
    assert sorted(seen + list(windows)) == sound
    for member, found in windows.items():
        assert found == COST.cut(rows[member]["height"], rows[member]["width"])


def test_pictures_of_one_shape_share_units() -> None:
    shapes = [(50, 50, "plain"), (90, 60, "plain")] * 20
    shard = assign_units(table(shapes), COST, LIMITS)
    for unit in range(num_units(shard)):
        members = shard.take(rows_of_unit(shard, unit))
        if unit not in (num_units(shard) // 2 - 1, num_units(shard) // 2):
            assert len(set(members.column("width").to_pylist())) == 1


@pytest.mark.parametrize("shapes", [[], [(5, 5, "refused")]], ids=["none", "only refused"])
def test_shards_without_sound_pictures_have_no_units(shapes: list[tuple[int, int, str]]) -> None:
    assert num_units(assign_units(table(shapes), COST, LIMITS)) == 0
