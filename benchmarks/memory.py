"""Memory of one training step on a picture of 1333x800 with very many objects.

Each case runs in a process of its own, so that the peak of one does not hide the next. A step is
forward, backward and an SGD update. The figure to look at is the peak over that of a picture
without objects: what the objects themselves cost in assignment, sampling, targets and heads.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from d2det.config import Preset
from d2det.models.build import build_detector
from d2det.models.losses import reduce_losses
from d2det.presets import get_preset
from d2det.structures import CroppedMasks, ImageBatch, Target, TrainingBatch

HEIGHT, WIDTH = 800, 1333
LIMIT_GIB = 2.5
MEDIAN_SIDE_PX = 20
RESULTS = Path(__file__).resolve().parent / "results" / "memory.json"


def main() -> None:
    options = parse()
    if options.case is not None:
        print(json.dumps(measure(get_preset(options.preset[0]), options.case)))
        return
    rows = []
    for preset in options.preset:
        empty = run(preset, 0)
        for count in options.objects:
            row = {"preset": preset, "objects": count, **run(preset, count)}
            row["over_empty_gib"] = row["peak_gib"] - empty["peak_gib"]
            row["over_empty_cpu_s"] = row["cpu_s"] - empty["cpu_s"]
            rows.append(row)
    show(rows)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(rows, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", nargs="+", default=["d2det_r50", "d2det_r101_instance"])
    parser.add_argument("--objects", nargs="+", type=int, default=[100, 1000, 10_000])
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(preset: str, count: int) -> dict[str, float]:
    """Measures one case in a fresh process."""
    command = [sys.executable, __file__, "--preset", preset, "--case", str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(output.stdout.splitlines()[-1])
    return result


def measure(preset: Preset, count: int) -> dict[str, float]:
    """Peak memory and CPU time of one step in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_detector(preset.model).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=1e-4, momentum=0.9)
    batch = crowded(count, preset.model.num_classes, has_masks=preset.model.mask is not None)
    started = time.process_time()
    losses = reduce_losses(model.loss_terms(batch), torch.clone)
    torch.stack(list(losses.values())).sum().backward()
    optimiser.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"peak_gib": peak, "cpu_s": time.process_time() - started}


def crowded(count: int, num_classes: int, *, has_masks: bool) -> TrainingBatch:
    """One noise picture with `count` objects of about 20 pixels, all over it."""
    generator = torch.Generator().manual_seed(0)
    size = (torch.randn(count, 2, generator=generator) * 0.5).exp() * MEDIAN_SIDE_PX
    size = size.clamp(4, 200).long()
    low = (
        torch.rand(count, 2, generator=generator) * (torch.tensor([WIDTH, HEIGHT]) - size)
    ).long()
    target = Target(
        boxes=torch.cat((low, low + size), 1).float(),
        labels=torch.randint(0, num_classes, (count,), generator=generator),
        masks=_masks(torch.cat((low, size), 1)) if has_masks else None,
    )
    pixels = torch.randn(1, 3, HEIGHT, 1344, generator=generator)
    images = ImageBatch(pixels, torch.tensor([[HEIGHT, WIDTH]]))
    return TrainingBatch(images, (target,), (0,))


def _masks(rectangles: Tensor) -> CroppedMasks:
    areas = rectangles[:, 2:].prod(1)
    pixels = torch.ones(int(areas.sum()), dtype=torch.uint8)
    return CroppedMasks(pixels, rectangles, areas.cumsum(0) - areas)


def show(rows: list[dict[str, float]]) -> None:
    table = Table("preset", "objects", "peak GiB", "over empty GiB", "over empty CPU s", "")
    for row in rows:
        verdict = "ok" if row["over_empty_gib"] < LIMIT_GIB else f"over {LIMIT_GIB}"
        numbers = [
            f"{row[name]:.2f}" for name in ("peak_gib", "over_empty_gib", "over_empty_cpu_s")
        ]
        table.add_row(str(row["preset"]), str(row["objects"]), *numbers, verdict)
    Console().print(table)


if __name__ == "__main__":
    main()
