"""Finds the picture that kills the process of the model, when workers die on a unit repeatedly.

Ray starts a dead worker anew and gives it the same unit, for ever if need be. A worker that was
started anew therefore writes down which unit it takes; at the third time it predicts the pictures
one by one, each written down first, and one that twice saw the end of a worker is given up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from d2det_platform.label.layout import Layout
from d2det_platform.label.units import UnitRef
from d2det_platform.store import RunStore

_CAREFUL_FROM, _CONDEMNED_FROM = 3, 2
"""Tries of a unit, deaths of a picture. Kills from outside seldom hit one unit so often."""


class Suspects:
    """The record of units taken by workers that were started anew."""

    def __init__(self, store: RunStore, layout: Layout, attempt: int) -> None:
        self._store, self._layout, self._attempt = store, layout, attempt

    def take(self, ref: UnitRef) -> bool:
        """Notes that a unit is begun; returns whether its pictures should be taken one by one."""
        record = self._read(ref)
        record["tries"] += 1
        self._write(ref, record)
        return bool(record["tries"] >= _CAREFUL_FROM)

    def is_condemned(self, ref: UnitRef, place: int) -> bool:
        """Returns whether a picture of a unit, by its place there, has killed workers."""
        return bool(self._read(ref)["deaths"].get(str(place), 0) >= _CONDEMNED_FROM)

    @contextmanager
    def watched(self, ref: UnitRef, place: int) -> Iterator[None]:
        """Counts a death of the picture, and takes that back when the context ends alive."""
        record = self._read(ref)
        before = record["deaths"].get(str(place), 0)
        self._write(ref, {**record, "deaths": {**record["deaths"], str(place): before + 1}})
        try:
            yield
        finally:
            self._write(ref, record)

    def _name(self, ref: UnitRef) -> str:
        return self._layout.tries(ref.shard, ref.unit, self._attempt)

    def _read(self, ref: UnitRef) -> dict[str, Any]:
        try:
            return dict(json.loads(self._store.read(self._name(ref))))
        except FileNotFoundError:
            return {"tries": 0, "deaths": {}}

    def _write(self, ref: UnitRef, record: dict[str, Any]) -> None:
        self._store.write(self._name(ref), json.dumps(record).encode())
