"""Drives a run from its plan to `_SUCCESS`; whatever is done already is not done again.

    plan -> for each shard: missing units -> staged files -> labels/part -> exports -> _SUCCESS

Nothing is remembered between drivers but the files themselves, so a driver may die anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from d2det_platform.label.card import Speed
from d2det_platform.label.engine import Engine
from d2det_platform.label.finish import finish
from d2det_platform.label.labels import committed
from d2det_platform.label.layout import SUCCESS, Run
from d2det_platform.label.plan import Plan, Shard, make_plan, read_plan
from d2det_platform.label.progress import Progress
from d2det_platform.label.units import UnitRef
from d2det_platform.label.work import UnitResult
from d2det_platform.store import RunStore


@dataclass(frozen=True)
class Outcome:
    """What a driver did.

    success: the content of `_SUCCESS`.  inferred: pictures that it predicted itself.
    """

    success: dict[str, Any]
    inferred: int

    @property
    def bad_fraction(self) -> float:
        """Share of the pictures that could not be labelled."""
        counts = self.success["counts"]
        return counts["errors"] / counts["pictures"] if counts["pictures"] else 0.0


def plan_run(store: RunStore, run: Run, engine: Engine, *, seen: Any = lambda _: None) -> Plan:
    """Returns the plan of a run, which is made where there is none."""
    plan = read_plan(store, run)
    if plan is None:
        plan = make_plan(store, run, lambda batches: engine.inspect(run, batches), seen=seen)
    return plan


def label_run(
    store: RunStore, run: Run, plan: Plan, engine: Engine, *, progress: Progress
) -> Outcome:
    """Labels what is missing and finishes the run."""
    parts = committed(store, run)
    pending: dict[int, set[int]] = {}
    for shard in plan.shards:
        if run.layout.part_name(shard.index) in parts:
            progress.skip(shard, units=shard.units)
            continue
        missing = pending[shard.index] = _missing_units(store, run, shard)
        progress.skip(shard, units=shard.units - len(missing))
    if pending:
        store.remove(SUCCESS)
    speed, inferred = _label_units(run, engine, pending, attempt=1, progress=progress)
    success = finish(store, run, plan, run.options.output, speed)
    return Outcome(success, inferred)


def label_units(
    run: Run, engine: Engine, shards: Sequence[Shard], *, attempt: int, progress: Progress
) -> tuple[Speed | None, int]:
    """Does all units of shards of a later attempt and commits them."""
    pending = {shard.index: set(range(shard.units)) for shard in shards}
    return _label_units(run, engine, pending, attempt=attempt, progress=progress)


def _label_units(
    run: Run, engine: Engine, pending: dict[int, set[int]], *, attempt: int, progress: Progress
) -> tuple[Speed | None, int]:
    """Does the pending units of shards and commits each shard when it has all of them."""
    refs = [UnitRef(shard, unit) for shard in sorted(pending) for unit in sorted(pending[shard])]
    for shard, units in pending.items():
        if not units:
            engine.commit(run, shard, attempt)
    clock = _Clock()
    if refs:
        for result in engine.predict(run, refs, attempt):
            clock.add(result)
            progress.add(result)
            pending[result.shard].discard(result.unit)
            if not pending[result.shard]:
                engine.commit(run, result.shard, attempt)
    engine.drain()
    if missing := sum(map(len, pending.values())):
        raise RuntimeError(f"{missing} units came to no result; the same command does them")
    return clock.speed(), clock.pictures


def _missing_units(store: RunStore, run: Run, shard: Shard) -> set[int]:
    staged = set(store.names(run.layout.staged_folder(shard.index)))
    return {unit for unit in range(shard.units) if run.layout.staged_name(unit) not in staged}


class _Clock:
    """Measures from the beginning of the first unit, so that starting up does not count."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._first = self._last = 0.0
        self._megapixels = 0.0
        self.pictures = 0

    def add(self, result: UnitResult) -> None:
        """Takes note of a unit that is done."""
        if not result.is_new:
            return
        self._last = time.monotonic()
        self._first = self._first or self._last - result.seconds
        self._megapixels += result.megapixels
        self.pictures += result.pictures

    def speed(self) -> Speed | None:
        """Returns what was measured, if anything was done."""
        if not self._first:
            return None
        return Speed(
            pictures=self.pictures,
            megapixels=round(self._megapixels, 3),
            seconds=round(self._last - self._first, 3),
            start_up_s=round(self._first - self._start, 3),
        )
