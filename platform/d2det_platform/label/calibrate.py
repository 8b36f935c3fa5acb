"""How long a run takes: a few of its pictures are predicted, and the rest is in proportion."""

from __future__ import annotations

import time

import numpy as np
import torch

from d2det_platform.label.decoders import Decoders, Request
from d2det_platform.label.inspect import state_of
from d2det_platform.label.layout import Run
from d2det_platform.label.models import load_model
from d2det_platform.label.plan import Plan, read_manifest
from d2det_platform.store import RunStore

PICTURES, LIMIT_S = 8, 20.0
_MAX_WINDOW = 2048


def expected_seconds(store: RunStore, run: Run, plan: Plan) -> float | None:
    """Returns the seconds that one worker like this process needs; None without pictures to try.

    Pictures of the middle of the first shard are tried, the first of them to warm up.
    """
    manifest = read_manifest(store, run, plan.shards[0].index).to_pylist()
    sound = [row for row in manifest if row["reason"] is None]
    if not sound:
        return None
    chosen = [
        sound[i] for i in np.linspace(0, len(sound) - 1, min(PICTURES, len(sound))).astype(int)
    ]
    options = run.options
    if options.work.threads:
        torch.set_num_threads(options.work.threads)
    model = load_model(options, run.model, batch_pixels=options.batch_pixels)
    side = options.tile or _MAX_WINDOW
    spent, pixels, start = 0.0, 0, time.perf_counter()
    with Decoders(limits=options.limits, raster=options.raster) as decoders:
        for number, row in enumerate([chosen[0], *chosen]):
            before = time.perf_counter()
            (content,) = decoders.read([_request(row, side)])
            if not isinstance(content, np.ndarray):
                continue
            content = content[:side, :side] if row["windows"] > 1 else content
            model.predict([content])
            if number:
                spent += time.perf_counter() - before
                pixels += row["cost"] // row["windows"]
            if time.perf_counter() - start > LIMIT_S:
                break
    return spent / pixels * plan.total("cost") if pixels else None


def _request(row: dict[str, object], side: int) -> Request:
    picture = {**row}
    window = None
    if "+" in str(row["format"]):
        width, height = int(str(row["width"])), int(str(row["height"]))
        window = (0, 0, min(side, width), min(side, height))
    return Request(str(row["uri"]), state_of(picture), window)
