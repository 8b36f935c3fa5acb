"""Networks and training steps on a GPU, by the clock.

    python benchmarks/gpu_networks.py [--only networks training] [--json OUT]

Inference goes from pixels on the card to detections on the card, R50 at 800 x 1333 with weights
under which it finds as much as in use; torchvision's network has random weights and finds nothing,
so its post-processing is free. Training steps are timed on batches of many sizes, the first time a
size is seen and again: libraries may prepare themselves for every new size, as cuDNN does for the
depthwise convolution that is timed last, by itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import model as network
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from d2det.data.coco import open_coco
from d2det.data.loader import TrainingLoader
from d2det.data.synthetic import write_dataset
from d2det.inference.preprocess import to_batch
from d2det.models.build import build_detector
from d2det.models.depthwise import DepthwiseConv2d
from d2det.presets import get_preset
from d2det.structures import TrainingBatch
from d2det_platform.train.gradient import GlobalGradient
from d2det_platform.train.ranks import Ranks
from d2det_platform.train.speed import Stopwatch

Run = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = {"networks": end_to_end, "training": training_steps, "depthwise": depthwise}
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/gpu_networks.json"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("needs a GPU")
    report = {name: parts[name]() for name in args.only}
    for name, rows in report.items():
        table = Table(name, *next(iter(rows.values())), title=torch.cuda.get_device_name())
        for side, row in rows.items():
            table.add_row(side, *(f"{ms:.1f}" for ms in row.values()))
        Console(width=110).print(table)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1))


def end_to_end() -> dict[str, dict[str, float]]:
    """Milliseconds a picture of networks, alone and in batches of eight."""
    config = get_preset("d2det_r50").input
    picture = network.make_picture(network.HEIGHT, network.WIDTH)
    sides: dict[str, Callable[[int], Run]] = {}
    for precision in ("fp32", "bf16", "fp16"):
        detector = network.official_r50(precision, device="cuda")

        def ours(count: int, detector: Any = detector) -> Run:
            return partial(detector.detect, to_batch([picture] * count, config).to("cuda"))

        sides[f"D2Det R50 {precision}"] = ours
    reference = network.reference().cuda()
    for precision in ("fp32", "bf16"):

        def theirs(count: int, is_half: bool = precision == "bf16") -> Run:
            pixels = list(to_batch([picture] * count, config).pixels.cuda())
            return torch.autocast("cuda", torch.bfloat16, is_half)(partial(reference, pixels))

        sides[f"Faster R-CNN R50 {precision}, torchvision"] = theirs
    found: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        for name, made in sides.items():
            found[name] = {f"ms a picture, of {n}": clock_ms(made(n)) / n for n in (1, 8)}
            print(name, found[name], flush=True)
    return found


def training_steps() -> dict[str, dict[str, float]]:
    """Milliseconds of a step on two pictures in bf16: the first time a size is seen, and again."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(folder, split="train", num_images=16, size=(600, 800))
        for name in ("d2det_lite_instance", "d2det_r50"):
            found[name] = step_ms(name, Path(folder))
            print(name, found[name], flush=True)
    return found


def step_ms(name: str, folder: Path) -> dict[str, float]:
    preset = get_preset(name)
    data = open_coco(folder, "train", masks=preset.model.mask is not None)
    train = preset.train.model_copy(update={"global_batch": 2, "short_sides": (352, 544)})
    input_config = preset.input.model_copy(update={"short_side": 448, "long_side": 768})
    model = build_detector(preset.model).cuda().to(memory_format=torch.channels_last).train()
    device = torch.device("cuda")
    gradient = GlobalGradient(
        model, Ranks(0, 1, device), stopwatch=Stopwatch(device), dtype=torch.bfloat16
    )
    loader = TrainingLoader(data, input_config, train, num_threads=2)
    batches = [batch.to(device) for batch in loader.batches(0)]
    loader.close()

    def run(batch: TrainingBatch) -> None:
        gradient.compute_alone(batch)
        gradient.forget()

    return first_and_again([partial(run, batch) for batch in batches])


def depthwise() -> dict[str, dict[str, float]]:
    """Milliseconds of a depthwise layer, forward and backward, channels last, in bf16."""
    sides = {
        "nn.Conv2d": nn.Conv2d(96, 96, 3, padding=1, groups=96, bias=False),
        "DepthwiseConv2d": DepthwiseConv2d(96, 3),
    }
    return {name: layer_ms(layer) for name, layer in sides.items()}


def layer_ms(layer: nn.Module) -> dict[str, float]:
    layer.to("cuda", torch.bfloat16).to(memory_format=torch.channels_last)

    def run(x: Tensor) -> None:
        layer(x).sum().backward()

    sizes = [(4, 96, 80 + 2 * i, 120 + 3 * i) for i in range(6)]
    maps = [torch.randn(size, device="cuda", dtype=torch.bfloat16) for size in sizes]
    maps = [x.contiguous(memory_format=torch.channels_last).requires_grad_() for x in maps]
    return first_and_again([partial(run, x) for x in maps])


def first_and_again(runs: list[Run]) -> dict[str, float]:
    """Median milliseconds of `runs`, each of a size of its own, the first time and the second."""
    first, again = (statistics.median(map(once_ms, runs)) for _ in range(2))
    return {"ms at a new size": first, "ms again": again}


def clock_ms(run: Run) -> float:
    """Median milliseconds by the clock until the card is done, warm."""
    for _ in range(3):
        run()
    return statistics.median(once_ms(run) for _ in range(7))


def once_ms(run: Run) -> float:
    """Milliseconds by the clock until the card is done."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1e3


if __name__ == "__main__":
    main()
