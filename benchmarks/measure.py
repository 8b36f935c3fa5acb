"""Compares implementations by CPU time on one thread: interleaved rounds, medians, a table, JSON.

Import it before torch: it keeps torch and the BLAS below it on one thread.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Other:
    """Something to compare with.

    run: does the same work.  wanted: how many times as long it should take, None: for information.
    rounds: how often it runs at most (slow ones need fewer).  agrees: whether its result and ours
    are the same.
    """

    run: Callable[[], object]
    wanted: float | None = None
    rounds: int = 100
    agrees: Callable[[Any, Any], bool] = lambda theirs, ours: True


@dataclass(frozen=True)
class Case:
    """One piece of work, done by us and by others."""

    name: str
    ours: Callable[[], object]
    others: dict[str, Other]
    rounds: int = 7


@dataclass
class Result:
    """Medians in milliseconds of CPU time, and for each other whether the ratio is as wanted."""

    name: str
    ours_ms: float
    others: dict[str, dict[str, Any]] = field(default_factory=dict)


def measure(case: Case) -> Result:
    """Runs all sides once to warm up, then `case.rounds` times in turn."""
    torch.set_num_threads(1)
    result_of_ours = case.ours()
    for name, other in case.others.items():
        if not other.agrees(other.run(), result_of_ours):
            raise RuntimeError(f"{case.name}: {name} gives another result")
    ours: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in case.others}
    for turn in range(case.rounds):
        ours.append(_cpu_ms(case.ours))
        for name, other in case.others.items():
            if turn < other.rounds:
                theirs[name].append(_cpu_ms(other.run))
    result = Result(case.name, statistics.median(ours))
    for name, other in case.others.items():
        other_ms = statistics.median(theirs[name])
        ratio = other_ms / result.ours_ms
        result.others[name] = {
            "ms": other_ms,
            "ratio": ratio,
            "wanted": other.wanted,
            "met": other.wanted is None or ratio >= other.wanted,
        }
    return result


def report(title: str, cases: Iterable[Case], path: Path | None = None) -> list[Result]:
    """Measures the cases and prints a table row for each comparison.

    Every case is told and written to the JSON file as soon as it is measured: some take minutes.
    """
    console = Console(width=120)
    table = Table("case", "ours ms", "against", "ms", "ratio", "wanted", title=title)
    results = []
    for case in cases:
        result = measure(case)
        results.append(result)
        ratios = (f"{other['ratio']:.2f} x {name}" for name, other in result.others.items())
        print(f"{result.name}: {result.ours_ms:.2f} ms; {', '.join(ratios)}", flush=True)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [{"name": r.name, "ours_ms": r.ours_ms, "others": r.others} for r in results]
            path.write_text(json.dumps({"title": title, "results": rows}, indent=1))
        for index, (name, other) in enumerate(result.others.items()):
            wanted = "" if other["wanted"] is None else f">= {other['wanted']:g}"
            table.add_row(
                result.name if index == 0 else "",
                f"{result.ours_ms:.2f}" if index == 0 else "",
                name,
                f"{other['ms']:.2f}",
                f"{other['ratio']:.2f}x",
                wanted + ("" if other["met"] else "  MISSED"),
            )
    console.print(table)
    return results


def _cpu_ms(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return (time.process_time() - start) * 1e3
