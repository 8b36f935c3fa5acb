"""The run card: what was labelled with what, how fast, how windows agreed, and how it looks."""

from __future__ import annotations

import json
import platform
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from d2det import __version__
from d2det.inference.seams import SeamAudit
from d2det_ops.digest import build_info
from d2det_platform.label.card_page import page
from d2det_platform.label.labels import label_rows
from d2det_platform.label.layout import Run
from d2det_platform.label.options import OutputOptions
from d2det_platform.label.plan import Plan
from d2det_platform.label.samples import draw_samples
from d2det_platform.store import RunStore

CARD, PAGE = "run_card.json", "run_card.html"
_SCORE_BINS = 10
_MAX_LISTED = 50
"""Errors shown on the page; the table has all."""


@dataclass(frozen=True)
class Speed:
    """Of the inference of one driver. start_up_s: until the first unit was begun.

    seconds: from then until the last one was done.
    """

    pictures: int
    megapixels: float
    seconds: float
    start_up_s: float


@dataclass
class _Sums:
    """What one pass over the labels adds up."""

    pictures: int = 0
    detections: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    scores: list[int] = field(default_factory=lambda: [0] * _SCORE_BINS)
    reasons: Counter[str] = field(default_factory=Counter)
    errors: list[dict[str, Any]] = field(default_factory=list)
    audit: SeamAudit = field(default_factory=SeamAudit)
    audited: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)


def write_card(
    store: RunStore, run: Run, plan: Plan, outputs: OutputOptions, speed: Speed | None
) -> tuple[dict[str, Any], list[str]]:
    """Writes the card as JSON and as a page; returns its content and the names of the files."""
    sums = _add_up(store, run, plan, num_samples=outputs.samples)
    card = {
        "counts": {
            "pictures": sums.pictures,
            "labelled": sums.pictures - sum(sums.reasons.values()),
            "errors": sum(sums.reasons.values()),
            "repeated": plan.repeated,
            "windows": plan.total("windows"),
            "detections": sums.detections,
        },
        "classes": dict(sums.classes.most_common()),
        "scores": {f"{k / _SCORE_BINS:.1f}": n for k, n in enumerate(sums.scores)},
        "errors": dict(sums.reasons.most_common()),
        "seams": _seams(sums),
        "speed": asdict(speed) if speed is not None else _earlier_speed(store),
        "lineage": _lineage(run, plan),
    }
    store.write(CARD, json.dumps(card, indent=1).encode())
    pictures = draw_samples(run, sums.samples)
    store.write(PAGE, page(card, sums.errors, pictures).encode())
    return card, [CARD, PAGE]


def _add_up(store: RunStore, run: Run, plan: Plan, *, num_samples: int) -> _Sums:
    sums = _Sums()
    step = max(1, plan.total("pictures") // num_samples) if num_samples else 0
    for number, row in enumerate(label_rows(store, run, plan)):
        sums.pictures += 1
        if (error := row["error"]) is not None:
            sums.reasons[error["reason"]] += 1
            if len(sums.errors) < _MAX_LISTED:
                sums.errors.append({"uri": row["uri"], **error})
            continue
        sums.detections += len(row["detections"])
        for found in row["detections"]:
            sums.classes[found["label"]] += 1
            sums.scores[min(int(found["score"] * _SCORE_BINS), _SCORE_BINS - 1)] += 1
        if row["seams"] is not None:
            sums.audit += SeamAudit(**row["seams"])
            sums.audited += 1
        if step and len(sums.samples) < num_samples and number >= len(sums.samples) * step:
            sums.samples.append(row)
    return sums


def _seams(sums: _Sums) -> dict[str, Any] | None:
    """How well overlapping windows agreed, over all pictures that were cut."""
    if not sums.audited:
        return None
    audit = sums.audit
    rates = ("agreement", "double_rate", "usual_double_rate", "split_rate")
    return {
        "pictures": sums.audited,
        **asdict(audit),
        **{name: round(getattr(audit, name), 4) for name in rates},
    }


def _earlier_speed(store: RunStore) -> dict[str, Any] | None:
    try:
        earlier = json.loads(store.read(CARD))
    except FileNotFoundError:
        return None
    speed = earlier.get("speed")
    return dict(speed) if speed else None


def _lineage(run: Run, plan: Plan) -> dict[str, Any]:
    """Everything that decides what was found."""
    return {
        "run": run.key,
        "model": run.model.name,
        "model_digest": run.model.digest,
        "weights": run.options.weights or None,
        "settings": run.identity,
        "manifest_digests": [shard.digest for shard in plan.shards[:1000]],
        "d2det": __version__,
        "ops": asdict(build_info()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
