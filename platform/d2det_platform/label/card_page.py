"""The run card as one HTML page that needs nothing else. Names from outside are escaped."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from d2det_platform.label.samples import Sample

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse}td,th{padding:.2rem .9rem .2rem 0;text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}tr{border-bottom:1px solid #eee}
.bar{background:#3b7dd8;height:.7rem;display:inline-block}
figure{display:inline-block;margin:.4rem;width:20rem;vertical-align:top}
figure img{width:100%}figcaption{font-size:.8rem;color:#555;overflow-wrap:anywhere}
pre{background:#f6f6f6;padding:.8rem;overflow:auto;font-size:.8rem}
"""


def page(
    card: Mapping[str, Any], errors: Sequence[Mapping[str, Any]], samples: Sequence[Sample]
) -> str:
    """Returns the page of a card, with the first errors and drawn pictures."""
    counts = card["counts"]
    sections = [
        f"<h1>{counts['labelled']:,} pictures labelled by {_text(card['lineage']['model'])}</h1>",
        _table(("", ""), [(name, f"{n:,}") for name, n in counts.items()]),
        "<h2>Samples</h2>" if samples else "",
        *(_figure(sample) for sample in samples),
        "<h2>Classes</h2>",
        _bars(card["classes"]),
        "<h2>Scores from</h2>",
        _bars(card["scores"]),
    ]
    if card["seams"]:
        sections += ["<h2>Where windows overlap</h2>", _seams(card["seams"])]
    if card["speed"]:
        sections += ["<h2>Speed</h2>", _speed(card["speed"])]
    if errors:
        rows = [(e["uri"], e["stage"], e["reason"], e["detail"], e["attempt"]) for e in errors]
        heads = ("uri", "stage", "reason", "detail", "attempt")
        sections += [f"<h2>Errors ({counts['errors']:,})</h2>", _table(heads, rows)]
    lineage = json.dumps(card["lineage"], indent=1)
    sections += ["<h2>Lineage</h2>", f"<pre>{_text(lineage)}</pre>"]
    body = "\n".join(sections)
    return (
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>run card</title>"
        f"<style>{_STYLE}</style>\n<body>\n{body}\n</body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _bars(counts: Mapping[str, int]) -> str:
    most = max(counts.values(), default=0) or 1
    rows = "".join(
        f"<tr><td>{_text(name)}</td><td class=n>{n:,}</td>"
        f"<td><span class=bar style='width:{24 * n / most:.2f}rem'></span></td></tr>"
        for name, n in counts.items()
    )
    return f"<table>{rows}</table>"


def _figure(sample: Sample) -> str:
    data = base64.b64encode(sample.jpeg).decode()
    name = _text(sample.name)
    return (
        f"<figure><img alt='{name}' src='data:image/jpeg;base64,{data}'>"
        f"<figcaption>{name}</figcaption></figure>"
    )


def _seams(seams: Mapping[str, Any]) -> str:
    meanings = {
        "agreement": "objects in overlaps that more than one window found",
        "double_rate": "objects in overlaps still covered by a better one of their class",
        "usual_double_rate": "the same outside overlaps: what the detector does alone",
        "split_rate": "objects at a seam neither seen whole nor joined",
    }
    rows = [(text, f"{100 * seams[name]:.1f} %") for name, text in meanings.items()]
    rows += [
        ("pictures that were cut", f"{seams['pictures']:,}"),
        ("found in windows", f"{seams['found']:,}"),
        ("objects after merging", f"{seams['objects']:,}"),
    ]
    return _table(("", ""), rows)


def _speed(speed: Mapping[str, Any]) -> str:
    seconds = max(speed["seconds"], 1e-9)
    rows = [
        ("pictures a second", f"{speed['pictures'] / seconds:.2f}"),
        ("megapixels a second", f"{speed['megapixels'] / seconds:.1f}"),
        ("seconds of labelling", f"{speed['seconds']:.1f}"),
        ("seconds until the first unit was begun", f"{speed['start_up_s']:.1f}"),
    ]
    return _table(("", ""), rows)
