"""JSON from outside as columns: whatever does not fit is refused by the place where it stands.

Files of millions of objects are read by this, so the usual case takes one conversion a column, and
only a column that fails is looked through for the first bad value.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]


def parse_json(text: bytes) -> Any:
    """Returns what a JSON text holds; whole numbers beyond 64 bits as floats.

    Such a number then fails where its field is looked at, by name, and overflows nothing.

    Raises:
        ValueError: It is not JSON.
    """
    try:
        return json.loads(text, parse_int=_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def objects(value: Any, what: str) -> Sequence[Row]:
    """Returns `value`, a list of objects.

    what: one of them, for the message.

    Raises:
        ValueError: It is no list, or holds something else.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"where a list of {what} objects belongs stands {value!r:.40}")
    for place, each in enumerate(value):
        if not isinstance(each, dict):
            raise ValueError(f"{what} {place} is {each!r:.40}, not an object")
    return value


def column(
    rows: Sequence[Row],
    key: str,
    dtype: Any,
    what: str,
    *,
    defaults: Iterable[Any] = repeat(None),
) -> NDArray[Any]:
    """Returns field `key` of N rows as (N,) `dtype`, float64 or int64.

    defaults: for each row what holds where it has none, or null; else every row needs one.

    Raises:
        ValueError: A row has none, or something else than a number; or where whole numbers are
            wanted, another one.
    """
    given = [row.get(key) for row in rows]
    values = [
        default if value is None else value
        for value, default in zip(given, defaults, strict=False)  # they may be endless
    ]
    try:
        return _numbers(values, dtype)
    except _BAD:
        place = _first_bad(values, dtype)
        raise ValueError(f"{what} {place}: bad or missing {key!r}: {given[place]!r:.40}") from None


def box_column(rows: Sequence[Row], what: str) -> NDArray[np.float64]:
    """Returns the fields `bbox` of N rows as (N, 4).

    Raises:
        ValueError: One is missing, or is not four finite numbers.
    """
    found: list[Any] = []
    for place, row in enumerate(rows):
        box = row.get("bbox")
        if not isinstance(box, list | tuple) or len(box) != 4:
            raise ValueError(f"{what} {place}: bad or missing 'bbox': {box!r:.60}")
        found.extend(box)
    try:
        numbers = _numbers(found, np.float64).reshape(-1, 4)
    except _BAD:
        place = _first_bad(found, np.float64) // 4
        raise ValueError(
            f"{what} {place}: bad or missing 'bbox': {rows[place]['bbox']!r:.60}"
        ) from None
    return finite(numbers, "bbox", what)


def texts(rows: Sequence[Row], key: str, what: str) -> list[str]:
    """Returns field `key` of every row.

    Raises:
        ValueError: A row has none, or something else than a text.
    """
    for place, row in enumerate(rows):
        if not isinstance(row.get(key), str):
            raise ValueError(f"{what} {place}: bad or missing {key!r}: {row.get(key)!r:.40}")
    return [row[key] for row in rows]


def finite(values: NDArray[np.float64], key: str, what: str) -> NDArray[np.float64]:
    """Returns `values`, of N rows.

    Raises:
        ValueError: One is infinite or not a number.
    """
    bad = ~np.isfinite(values)
    if bad.any():
        raise ValueError(f"{what} {np.argwhere(bad)[0][0]} has a {key} that is not finite")
    return values


_BAD = (TypeError, ValueError, OverflowError)


def _number(text: str) -> int | float:
    if len(text) <= 18:
        return int(text)
    fits = len(text) <= 20 and -(2**63) <= int(text) < 2**63
    return int(text) if fits else float(text)


def _numbers(values: list[Any], dtype: Any) -> NDArray[Any]:
    found = np.array(values) if values else np.zeros(0, dtype)
    if found.ndim != 1 or found.dtype.kind not in "biuf":
        raise ValueError("not numbers")
    if dtype is np.int64 and found.dtype.kind != "i":
        whole = [int(value) for value in values]
        if whole != values:
            raise ValueError("not whole numbers")
        return np.array(whole, dtype)
    return found.astype(dtype)


def _first_bad(values: list[Any], dtype: Any) -> int:
    for place, value in enumerate(values):
        try:
            _numbers([value], dtype)
        except _BAD:
            return place
    raise AssertionError("every value is sound by itself")
