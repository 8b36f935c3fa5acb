"""A plan as a table for people."""

from __future__ import annotations

import datetime
from collections import Counter

from rich import box
from rich.console import Console
from rich.table import Table

from d2det_platform.label.layout import Run
from d2det_platform.label.plan import Plan, read_manifest
from d2det_platform.store import RunStore

_SHOWN = 10
_WIDTH = 120


def plan_table(store: RunStore, run: Run, plan: Plan, seconds: float | None) -> None:
    """Prints what a run will do: numbers, formats, refused pictures, and how long it takes.

    seconds: of one worker, where it was measured.
    """
    formats: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    examples: list[tuple[str, str]] = []
    largest = (0, "")
    for shard in plan.shards:
        table = read_manifest(store, run, shard.index)
        for row in table.select(
            ["uri", "format", "width", "height", "reason", "detail"]
        ).to_pylist():
            formats[row["format"] or "not a picture"] += 1
            largest = max(largest, ((row["width"] or 0) * (row["height"] or 0), row["uri"]))
            if row["reason"] is not None:
                reasons[row["reason"]] += 1
                if len(examples) < _SHOWN:
                    examples.append((row["uri"], f"{row['reason']}: {row['detail']}"))
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    rows = [
        ("pictures", f"{plan.total('pictures'):,}"),
        ("named again, left out", f"{plan.repeated:,}"),
        ("refused by their header", f"{plan.total('refused'):,}"),
        ("windows", f"{plan.total('windows'):,}"),
        ("network megapixels", f"{plan.total('cost') / 1e6:,.0f}"),
        ("gigabytes to read", f"{plan.total('bytes') / 1e9:,.2f}"),
        ("units, shards", f"{plan.total('units'):,}, {len(plan.shards):,}"),
        ("largest picture", f"{largest[0] / 1e6:,.1f} MP, {largest[1]}"),
        ("formats", ", ".join(f"{n:,} {name}" for name, n in formats.most_common())),
        ("refusals", ", ".join(f"{n:,} {name}" for name, n in reasons.most_common()) or "none"),
    ]
    if seconds is not None:
        rows.append(("one worker of this machine", str(datetime.timedelta(seconds=round(seconds)))))
    console.print(_table(f"plan {run.key} for {run.options.out}", ("", ""), rows))
    if examples:
        console.print(_table("refused", ("picture", "why"), examples))


def _table(title: str, heads: tuple[str, str], rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", show_header=any(heads))
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
