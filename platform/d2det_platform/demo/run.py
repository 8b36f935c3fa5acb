"""The demonstration: train, score, label, serve, and a list of what there is to look at."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from pydantic import Field

from d2det.checkpoints.weights import read_metadata
from d2det.config import Config
from d2det_platform.cli import FAILED, INTERRUPTED, OK
from d2det_platform.demo.data import DemoData, built_in, of_folder
from d2det_platform.demo.drawing import draw_row
from d2det_platform.demo.endpoint import ask, endpoint, largest_difference
from d2det_platform.demo.steps import Story, run

SEEN_PICTURES = 2880
"""Pictures a demonstration trains on: about five minutes on two cores."""
MAX_EPOCHS = 60
_NUM_STEPS = 5


class DemoOptions(Config):
    """Trains a small D2Det on this machine, scores it, labels a folder with it and asks it.

    Example: python jobs/demo.py --data my_coco_folder
    """

    data: Path | None = None
    """COCO-format folder of your own; None: aerial scenes that are drawn here."""
    out: Path = Path("demo_out")
    """Folder for everything; what is there from last time is used again."""
    epochs: int | None = Field(default=None, ge=1)
    """Passes over the training pictures; None: as many as take about five minutes on two cores."""


@dataclass(frozen=True)
class _Places:
    """Where the parts of a demonstration lie: one folder for each set of training options."""

    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "train"

    @property
    def weights(self) -> Path:
        return self.run / "best.safetensors"

    @property
    def labels(self) -> Path:
        return self.folder / "labels"


def demonstrate(options: DemoOptions) -> int:
    """Tells the story and returns the exit code.

    Raises:
        ValueError: the folder of data cannot be used.
    """
    story = Story(_NUM_STEPS)
    story.say(
        f"D2Det on Ray: train, score, label and serve on this machine. Everything goes to "
        f"{options.out}/; a second run uses what is there."
    )
    try:
        opened = _tell(story, options)
    except RuntimeError as error:
        print(f"demo: {error}; run it again to go on from there", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("\ndemo: stopped; run it again to go on from there", file=sys.stderr)
        return INTERRUPTED
    story.end(opened)
    return OK


def _tell(story: Story, options: DemoOptions) -> list[tuple[str, str]]:
    folder = options.out / ("aerial" if options.data is None else options.data.resolve().name)
    what = "Draw aerial scenes" if options.data is None else f"Look through {options.data}"
    with story.step(what, expected="half a minute the first time"):
        below = folder / "data"
        data = built_in(below) if options.data is None else of_folder(options.data, below)
        _tell_data(story, data)
    flags = training_flags(data, options)
    places = _Places(folder / _digest(flags))
    with story.step("Train with Ray, best weights by AP on the validation part", expected="5 min"):
        _train(story, places, flags)
    with story.step("Score the best weights", expected="half a minute"):
        _score(story, places, data)
    with story.step("Label a folder that holds a large scene and a damaged file", expected="1 min"):
        _label(story, places, data)
    with story.step("Serve, and ask the endpoint", expected="half a minute"):
        _ask(story, places, data)
    return _what_to_open(places)


def training_flags(data: DemoData, options: DemoOptions) -> dict[str, object]:
    """Returns the flags of `d2det train` for these data on this machine."""
    content = data.train.content()
    count = len(content["images"])
    has_masks = all(row.get("segmentation") for row in content["annotations"])
    epochs = options.epochs or max(1, min(MAX_EPOCHS, round(SEEN_PICTURES / max(count, 1))))
    flags: dict[str, object] = {
        "preset": "d2det_tiny_instance" if has_masks else "d2det_tiny",
        "data.train-images": data.train.images,
        "data.train-annotations": data.train.annotations,
        "data.val-images": data.val.images,
        "data.val-annotations": data.val.annotations,
        "train.epochs": epochs,
        "train.precision": "bf16" if _has_bf16() else "fp32",
        "evaluate-every-epochs": max(1, math.ceil(epochs / 3)),
        "cluster.cpus-per-worker": max(1, min(8, os.cpu_count() or 1)),
    }
    if torch.cuda.is_available():
        flags["cluster.gpu"] = ""
    return flags


def _has_bf16() -> bool:
    """Whether this processor multiplies in bfloat16, twice as fast then as in float32."""
    try:
        return "bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _digest(flags: dict[str, object]) -> str:
    """A name that changes with the options, so that only the same run is continued."""
    text = json.dumps({name: str(value) for name, value in flags.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _tell_data(story: Story, data: DemoData) -> None:
    for name, split in (("train", data.train), ("val", data.val)):
        content = split.content()
        classes = ", ".join(category["name"] for category in content["categories"][:10])
        story.say(
            f"{name}: {len(content['images'])} pictures, {len(content['annotations'])} objects "
            f"of {len(content['categories'])} classes ({classes})"
        )


def _train(story: Story, places: _Places, flags: dict[str, object]) -> None:
    if (places.run / "report").is_dir():
        story.say(f"{places.run} is there already")
        return
    pairs = [text for name, value in flags.items() for text in (f"--{name}", str(value)) if text]
    run(story, "train", "--name", places.run.name, "--storage", places.run.parent, *pairs)


def _score(story: Story, places: _Places, data: DemoData) -> None:
    scores = places.folder / "scores.json"
    if scores.exists():
        _tell_scores(story, scores)
        return
    config = json.loads((places.run / "config.json").read_text())
    masks = ["--masks"] if config["model"]["mask"] else ["--no-masks"]
    run(
        story,
        "evaluate",
        *("--annotations", data.val.annotations, "--images", data.val.images),
        *("--weights", places.weights, *masks, "--json", scores),
    )


def _tell_scores(story: Story, scores: Path) -> None:
    """What the first run of the step printed, shortly."""
    metrics = json.loads(scores.read_text())["metrics"]
    shown = [name for name in metrics if name.endswith(("/AP", "/AP50"))]
    story.say(f"{scores} is there: " + ", ".join(f"{name} {metrics[name]:.3f}" for name in shown))


def _label(story: Story, places: _Places, data: DemoData) -> None:
    sizes = [(image["width"], image["height"]) for image in data.val.content()["images"]]
    tile = max(map(max, sizes))  # the large scene alone is cut
    run(
        story,
        *("label", data.lake, "--weights", places.weights, "--out", places.labels),
        *("--tile", tile, "--overlap", tile // 4, "--output.geo", "geojson"),
    )
    for row in _labels(places):
        if row["error"] is not None:
            story.say(f"{row['name']}: {row['error']['reason']} ({row['error']['detail']})")
        elif row["windows"] > 1:
            story.say(
                f"{row['name']}: {len(row['detections'])} objects in {row['windows']} windows"
            )
            _draw(data.lake / row["name"], row, places, "scene.jpg")


def _ask(story: Story, places: _Places, data: DemoData) -> None:
    picture = next(iter(sorted((data.lake / "flight-1").iterdir())))
    with endpoint("--weights", places.weights) as address:
        ask(address, picture)
        answer, seconds = ask(address, picture)
        story.say(
            "$ " + shlex.join(["curl", "--data-binary", f"@{picture}", f"{address}/v1/detect"])
        )
        (places.folder / "endpoint.json").write_text(json.dumps(answer, indent=1))
    (row,) = answer["images"]
    story.say(f"{len(row['detections'])} objects in {1000 * seconds:.0f} ms")
    name = str(picture.relative_to(data.lake))
    bulk = next(each for each in _labels(places) if each["name"] == name)
    _compare(story, bulk["detections"], row["detections"])
    _draw(picture, row, places, "endpoint.jpg")


def _draw(picture: Path, row: dict[str, Any], places: _Places, name: str) -> None:
    draw_row(picture, row, read_metadata(places.weights).categories, places.folder / name)


def _compare(story: Story, bulk: list[dict[str, Any]], served: list[dict[str, Any]]) -> None:
    """Tells whether endpoint and bulk job found the same."""
    difference = largest_difference(bulk, served)
    if difference is None:
        story.say("[red]the bulk job found other objects in this picture[/red]")
    else:
        story.say(f"the bulk job found the same, boxes at most {difference:.1e} px apart")


def _labels(places: _Places) -> list[dict[str, Any]]:
    """The rows of the labels."""
    rows: list[dict[str, Any]] = pq.read_table(places.labels / "labels").to_pylist()
    return rows


def _what_to_open(places: _Places) -> list[tuple[str, str]]:
    """Rows of a path and what it shows, of what is there."""
    report, folder = places.run / "report", places.folder
    found = {
        report / "training.png": "losses, learning rate and AP over the training",
        report / "predictions.png": "validation pictures: ground truth left, predictions right",
        report / "analysis" / "report.html": "where AP is lost, class by class, with examples",
        folder / "scene.jpg": "the large scene with what was found in it",
        places.labels / "run_card.html": "the labelling: counts, speed, seams, samples, lineage",
        places.labels / "labels": "a Parquet row a picture, with masks; errors.parquet beside it",
        places.labels / "coco" / "dataset.json": "the same for CVAT, FiftyOne, pycocotools",
        places.labels / "geo" / "labels.geojson": "the same on a map, for QGIS",
        folder / "endpoint.jpg": "what the endpoint answered, drawn; endpoint.json is the answer",
        places.weights: "the weights: try `d2det predict`, `d2det serve --weights` on them",
    }
    return [(str(path), text) for path, text in found.items() if path.exists()]
