"""Small lakes of made pictures, and shorthands to label them in this process."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq

from d2det.inference.decode import read_image
from d2det_platform.label import uris
from d2det_platform.label.decoders import Request
from d2det_platform.label.driver import Outcome, label_run, plan_run
from d2det_platform.label.engine import LocalEngine
from d2det_platform.label.layout import Run, open_run
from d2det_platform.label.models import describe_model
from d2det_platform.label.options import LabelOptions
from d2det_platform.label.progress import Progress
from d2det_platform.store import RunStore

MODELS = "tests.platform.label.fake_models"


def picture(seed: int, size: tuple[int, int] = (40, 60)) -> bytes:
    """A PNG of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return cv2.imencode(".png", noise)[1].tobytes()


def make_lake(folder: Path, count: int, sizes: Sequence[tuple[int, int]] = ((40, 60),)) -> Path:
    """A folder of `count` pictures, half of them in folders below with equal base names."""
    for number in range(count):
        name = f"{number % 3}/same {number // 6}.png" if number % 2 else f"p{number:04d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number, sizes[number % len(sizes)]))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def options(*inputs: object, out: Path, model: str = "Plain", **more: Any) -> LabelOptions:
    """Options with small units and shards."""
    values: dict[str, Any] = {
        "unit_pixels": 10_000,
        "shard_pictures": 10,
        "output": {"samples": 0},
        "work": {"decoders": 1},
    }
    return LabelOptions(
        inputs=tuple(map(str, inputs)), out=str(out), model=f"{MODELS}:{model}", **(values | more)
    )


class DecodersHere:
    """Decodes sound pictures in this process, to spare tests of other things the processes."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def read(self, requests: Sequence[Request]) -> Iterator[Any]:
        return (read_image(uris.to_path(request.uri)) for request in requests)

    def launch(self) -> None:
        pass

    def wait(self) -> None:
        pass

    def close(self) -> None:
        pass


def open_labelling(given: LabelOptions) -> tuple[RunStore, Run]:
    """The store and the run of options."""
    store = RunStore(given.out)
    return store, open_run(store, given, describe_model(given))


def label_here(given: LabelOptions) -> Outcome:
    """Labels in this process."""
    store, run = open_labelling(given)
    engine = LocalEngine(store)
    plan = plan_run(store, run, engine)
    return label_run(store, run, plan, engine, progress=Progress(plan, out=io.StringIO()))


def read_labels(out: Path) -> list[dict[str, Any]]:
    """All rows, file by file."""
    files = sorted((out / "labels").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def label_bytes(out: Path) -> dict[str, bytes]:
    """The label files by name."""
    return {file.name: file.read_bytes() for file in sorted((out / "labels").glob("*.parquet"))}
