"""A whole picture through the detector, on the compiled ops and on their twins."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import Case, Other  # keeps torch on one thread, hence first

import numpy as np  # isort: skip

from d2det.checkpoints.official import convert
from d2det.inference.preprocess import to_batch
from d2det.models.build import build_detector
from d2det.models.detector import D2Det
from d2det.models.prepare import Precision, prepare_for_inference
from d2det.presets import get_preset
from d2det.structures import ImageBatch
from d2det_ops import twins_only

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.oracle.make_picture import make_picture
from tests.oracle.trace import official_state

HEIGHT, WIDTH = 800, 1333
PRESET, RECIPE = "d2det_r50", "r50_detection"


def cases() -> Iterator[Case]:
    """Yields the detection of objects in one picture, in float32 and in bfloat16."""
    yield detection("fp32", wanted=1.7)
    yield detection("bf16", wanted=None)


def detection(precision: Precision, *, wanted: float | None) -> Case:
    """Returns R50 detection with weights under which 1000 proposals leave 125 boxes to regress."""

    @functools.cache  # made at the first run, so that cases which are not chosen cost nothing
    def prepared() -> tuple[D2Det, ImageBatch]:
        preset = get_preset(PRESET)
        model = build_detector(preset.model)
        model.load_state_dict(convert(official_state(RECIPE), preset, RECIPE))
        picture = np.ascontiguousarray(make_picture(HEIGHT, WIDTH)[:, :, ::-1])
        return prepare_for_inference(model, precision), to_batch([picture], preset.input)

    def detect() -> object:
        model, batch = prepared()
        return model.detect(batch)

    return Case(
        f"R50 detection, {HEIGHT} x {WIDTH}, {precision}",
        detect,
        {"the same on the twins": Other(on_twins(detect), wanted)},
        rounds=3,
    )


def on_twins(run: Callable[[], object]) -> Callable[[], object]:
    """Returns `run` with every op as its twin."""

    def twin() -> object:
        with twins_only():
            return run()

    return twin
