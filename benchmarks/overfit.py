"""Trains D2Det (lite) on a handful of pictures until it knows them by heart, and scores it on them.

A detector that cannot do this has a fault somewhere between labels, targets, losses and decoding;
one that can reaches box AP 0.9 and mask AP 0.8 within minutes.

    python benchmarks/overfit.py --data DIR --annotations mini_train.json --trunk FILE
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import training
import tyro
from rich.console import Console
from rich.table import Table

METRICS = ("bbox/AP", "bbox/AP50", "bbox/AP75", "segm/AP", "segm/AP50", "segm/AP75")


@dataclass
class Arguments:
    """What to run."""

    data: Path
    """Folder of a COCO-format data set with masks; its pictures are in images/."""
    trunk: Path
    """MobileNetV2 weights (torchvision state dict)."""
    annotations: str = "instances_mini_train.json"
    """Annotations in `data`, of which the first pictures are taken."""
    pictures: int = 8
    epochs: int = 250
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int = 1
    """Compute threads of the training."""
    out: Path = Path("benchmarks/results/overfit")
    """Folder of the run and of the result, overfit.json."""


def main(arguments: Arguments) -> None:
    """Trains, scores and prints the table."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    subset = arguments.out / "subset.json"
    subset.write_text(json.dumps(first_pictures(arguments)))
    rows = training.train(
        {
            "preset": "d2det_lite_instance",
            "name": "run",
            "storage": arguments.out,
            "trunk": arguments.trunk,
            "data.train-images": arguments.data / "images",
            "data.train-annotations": subset,
            "data.val-annotations": subset,
            "train.epochs": arguments.epochs,
            "train.precision": arguments.precision,
            "train.lr": 1e-3,
            "train.warmup-steps": 30,
            "train.ema-decay": 0.97,
            "train.flip": 0,
            "train.vertical-flip": 0,
            "train.short-sides": None,
            "cluster.cpus-per-worker": arguments.threads,
            "evaluate-every-epochs": max(1, arguments.epochs // 5),
        }
    )
    metrics = training.last_evaluation(rows)
    result = {name: metrics[name] for name in METRICS}
    result["training minutes"] = training.minutes(rows)
    (arguments.out / "overfit.json").write_text(json.dumps(result, indent=1))
    table = Table("", f"{arguments.pictures} pictures, {arguments.epochs} epochs")
    for name, value in result.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)


def first_pictures(arguments: Arguments) -> dict[str, list[dict[str, object]]]:
    """Returns the annotations of the data set's first pictures."""
    whole = json.loads((arguments.data / arguments.annotations).read_text())
    images = whole["images"][: arguments.pictures]
    ids = {image["id"] for image in images}
    annotations = [a for a in whole["annotations"] if a["image_id"] in ids]
    return {"images": images, "annotations": annotations, "categories": whole["categories"]}


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
