"""Training of R50 at 800 x 1333 in bf16: our loop against torchvision's Faster R-CNN.

Both train the same stages of the same trunk on the same pictures, read from files, in batches of
the same size, and both with a loader of their own kind: ours threads, torchvision's processes.
Each is timed by whole steps, and by the share of them that waited for pictures, in a process of
its own.

    python benchmarks/training_speed.py --data DIR [--device cpu --global-batch 2 --warmup 2]
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from nwpu import torchvision_example
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from training import flags

from d2det.data.coco import CocoDataset
from d2det_platform.train.command import parse
from d2det_platform.train.host import PlainHost, describe_device
from d2det_platform.train.loop import Trainer
from d2det_platform.train.memory import PeakMemory
from d2det_platform.train.ranks import Ranks

Target = dict[str, Tensor]


@dataclass
class Arguments:
    """What to measure."""

    data: Path
    """A folder in COCO format: images/ and instances_train.json."""
    device: Literal["cuda", "cpu"] = "cuda"
    global_batch: int = 16
    warmup: int = 24
    """Steps before, in which libraries prepare themselves for sizes of batches they meet first."""
    steps: int = 24
    """Steps that are timed."""
    loaders: int = max(1, (os.cpu_count() or 2) - 2)
    """Threads (ours) and processes (torchvision's) that prepare pictures."""
    short_side: int = 800
    long_side: int = 1333
    json: Path = Path("benchmarks/results/training_speed.json")


def main(arguments: Arguments) -> None:
    """Measures both sides, prints the table, and writes it."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU; --device cpu measures this machine")
    sides = {"D2Det R50": ours, "Faster R-CNN R50, torchvision": theirs}
    report = {}
    for name, side in sides.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            report[name] = process.submit(side, arguments).result()
        print(name, report[name], flush=True)
    device = describe_device(torch.device(arguments.device))["device"]
    table = Table("", *next(iter(report.values())), title=device)
    for name, row in report.items():
        table.add_row(name, *(f"{value:.3g}" for value in row.values()))
    Console(width=110).print(table)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=1))


def ours(arguments: Arguments) -> dict[str, float]:
    """Steps of the training loop, as the job takes them."""
    values: dict[str, object] = {
        "preset": "d2det_r50",
        "data.train-images": arguments.data / "images",
        "data.train-annotations": arguments.data / "instances_train.json",
        "data.loader-threads": arguments.loaders,
        "train.global-batch": arguments.global_batch,
        "train.precision": "bf16",
        "train.short-sides": "None",
        "input.short-side": arguments.short_side,
        "input.long-side": arguments.long_side,
    }
    with tempfile.TemporaryDirectory() as folder:
        gpu = ["--cluster.gpu"] if arguments.device == "cuda" else []
        options = parse([*flags(values), "--storage", folder, *gpu])
        trainer = Trainer(options, Ranks(0, 1, torch.device(arguments.device)), PlainHost())
        row = clock(endless(trainer.loader.batches), trainer._step, arguments)
        trainer.close()
    return row


def theirs(arguments: Arguments) -> dict[str, float]:
    """Steps of torchvision's reference recipe: autocast, SGD, its own resizing."""
    data = Pictures(arguments.data)
    trunk = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    model = FasterRCNN(
        trunk,
        len(data.coco.categories) + 1,
        min_size=arguments.short_side,
        max_size=arguments.long_side,
    )
    model.to(arguments.device).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    # At a rate that leaves random weights where they are finite; speed is the question.
    optimizer = torch.optim.SGD(parameters, lr=1e-5, momentum=0.9, weight_decay=1e-4)
    loader = DataLoader(
        data,
        batch_size=arguments.global_batch,
        shuffle=True,
        drop_last=True,
        num_workers=arguments.loaders,
        pin_memory=arguments.device == "cuda",
        persistent_workers=True,
        multiprocessing_context="fork",  # as its reference has it; this process itself was spawned
        collate_fn=list,
    )

    def step(batch: list[tuple[Tensor, Target]]) -> None:
        images = [image.to(arguments.device, non_blocking=True) for image, _ in batch]
        targets = [
            {name: value.to(arguments.device) for name, value in target.items()}
            for _, target in batch
        ]
        with torch.autocast(arguments.device, torch.bfloat16):
            losses = model(images, targets)
        total = torch.stack(tuple(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        total.item()  # the reference loop looks at every loss, as ours does

    return clock(endless(lambda epoch: iter(loader)), step, arguments)


class Pictures(Dataset[tuple[Tensor, Target]]):
    """Training pictures as torchvision's detectors take them."""

    def __init__(self, folder: Path) -> None:
        self.coco = CocoDataset(folder / "images", folder / "instances_train.json", masks=False)

    def __len__(self) -> int:
        return len(self.coco)

    def __getitem__(self, position: int) -> tuple[Tensor, Target]:
        """(3, H, W) float32 in 0..1, and boxes (G, 4) float32 with labels (G,) int64 from 1."""
        return torchvision_example(self.coco[position], flip=False)


def endless(epoch: Callable[[int], Iterator[Any]]) -> Iterator[Any]:
    """Batches of one epoch after the other."""
    number = 0
    while True:
        yield from epoch(number)
        number += 1


def clock(
    batches: Iterator[Any], step: Callable[[Any], object], arguments: Arguments
) -> dict[str, float]:
    """Figures of whole steps, warm; `step` ends when the device is done."""
    memory = PeakMemory(torch.device(arguments.device))
    for _ in range(arguments.warmup):
        step(next(batches))
    memory.reset()
    waited, started = 0.0, time.perf_counter()
    for _ in range(arguments.steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        step(batch)
    seconds = time.perf_counter() - started
    return {
        "images/s": arguments.steps * arguments.global_batch / seconds,
        "share loading": waited / seconds,
        "peak GiB": memory.peak_bytes() / 2**30,
    }


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
