"""Inference of R50 at 800 x 1333 against the convolution peak of the same run and torchvision.

    python benchmarks/model.py [--rounds 3] [--threads 1] [--json OUT]

Sides run in turn within each round; figures are medians of CPU time. The peak is the best rate of
any of this network's large convolutions, alone, in the same round of the same run, so a busy
machine slows both. Weights follow the official trace's recipe: about 1000 proposals and 125 boxes
to regress, as in use. torchvision's network has random weights and finds nothing, so its
post-processing is free.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the weights' recipe is in tests
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import d2det
from d2det.checkpoints.official import convert
from d2det.inference.preprocess import to_batch
from d2det.models.build import build_detector
from d2det.models.detector import D2Det
from d2det.models.prepare import DTYPES, Precision, prepare_for_inference
from d2det.models.rpn import Proposals
from d2det.presets import get_preset
from d2det.structures import ImageBatch
from tests.oracle.make_picture import make_picture
from tests.oracle.trace import official_state

HEIGHT, WIDTH = 800, 1333
PROPOSALS = (100, 300, 500, 1000)
# (pictures or RoIs, channels in, out, height, width, kernel): where R50 spends its time.
LARGE_CONVOLUTIONS = (
    (1, 256, 256, 200, 336, 3),
    (1, 256, 256, 100, 168, 3),
    (128, 256, 256, 14, 14, 3),
    (125, 576, 576, 7, 7, 3),
)
WANTED = {"fp32": 1.5, "bf16": 1.8}

console = Console(width=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/model.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    images = to_batch([make_picture(HEIGHT, WIDTH)], get_preset("d2det_r50").input)
    models = {precision: official_r50(precision) for precision in WANTED}
    sides = {f"D2Det R50 {p}": partial(model.detect, images) for p, model in models.items()}
    sides["Faster R-CNN R50 fp32, ours"] = partial(baseline().detect, images)
    sides["Faster R-CNN R50 fp32, torchvision"] = partial(reference(), list(images.pixels))
    flops = {name: count_flops(run) for name, run in sides.items()}
    times, peaks = compare(sides, args.rounds)
    report = {
        "sides": end_to_end(times, flops, peaks),
        "stages": stages(models, images),
        "proposals": second_stage(models, images),
        "threads": args.threads,
        "torch": torch.__version__,
        "d2det": d2det.__version__,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1))


def official_r50(precision: Precision, device: str = "cpu") -> D2Det:
    """D2Det R50 with the weights of the official trace."""
    preset = get_preset("d2det_r50")
    model = build_detector(preset.model)
    model.load_state_dict(convert(official_state("r50_detection"), preset, "recipe"))
    return prepare_for_inference(model.to(device), precision)


def baseline() -> D2Det:
    """Our Faster R-CNN R50 with random weights."""
    torch.manual_seed(0)
    return prepare_for_inference(build_detector(get_preset("faster_rcnn_r50").model))


def reference() -> nn.Module:
    """torchvision's Faster R-CNN R50 with random weights."""
    torch.manual_seed(0)
    build = torchvision.models.detection.fasterrcnn_resnet50_fpn
    return build(weights=None, weights_backbone=None).eval()


def count_flops(run: Callable[[], object]) -> float:
    """Floating point operations of convolutions and matrix products, without our own ops."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def compare(
    sides: dict[str, Callable[[], object]], rounds: int
) -> tuple[dict[str, list[float]], dict[Precision, list[float]]]:
    """Seconds of each side and operations a second of the peak, by round."""
    times: dict[str, list[float]] = defaultdict(list)
    peaks: dict[Precision, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for precision in WANTED:
            peaks[precision].append(convolution_peak(DTYPES[precision]))
        for name, run in sides.items():
            times[name].append(cpu_seconds(run))
    return times, peaks


def convolution_peak(dtype: torch.dtype) -> float:
    """The best rate, in operations a second, of the network's large convolutions."""
    rates = []
    for count, c_in, c_out, height, width, kernel in LARGE_CONVOLUTIONS:
        x = torch.randn(count, c_in, height, width, dtype=dtype)
        x = x.to(memory_format=torch.channels_last)
        weight = torch.randn(c_out, c_in, kernel, kernel, dtype=dtype)
        weight = weight.to(memory_format=torch.channels_last)
        run = partial(F.conv2d, x, weight, padding=kernel // 2)
        run()
        operations = 2 * count * c_in * c_out * kernel**2 * height * width
        rates.append(operations / min(cpu_seconds(run) for _ in range(2)))
    return max(rates)


def end_to_end(
    times: dict[str, list[float]], flops: dict[str, float], peaks: dict[Precision, list[float]]
) -> dict[str, Any]:
    """Prints and returns medians of the sides, over the time their operations take at the peak."""
    best = {precision: max(rates) for precision, rates in peaks.items()}
    table = Table(
        "side", "seconds", "GFLOP", "at peak", "time / peak time", "wanted",
        title=f"end to end, {HEIGHT} x {WIDTH}; peak "
        + ", ".join(f"{rate / 1e9:.0f} GFLOP/s {p}" for p, rate in best.items()),
    )  # fmt: skip
    rows: dict[str, Any] = {}
    for name, seconds in times.items():
        precision: Precision = "bf16" if "bf16" in name else "fp32"
        median, ideal = statistics.median(seconds), flops[name] / best[precision]
        wanted = f"<= {WANTED[precision]}" if name.startswith("D2Det") else ""
        rows[name] = {"seconds": median, "flops": flops[name], "ratio": median / ideal}
        table.add_row(
            name,
            f"{median:.2f}",
            f"{flops[name] / 1e9:.0f}",
            f"{ideal:.2f}",
            f"{median / ideal:.2f}",
            wanted,
        )
    console.print(table)
    r50, low, ours, theirs = (rows[name]["seconds"] for name in times)
    console.print(
        f"bf16 is {r50 / low:.2f} x fp32 (wanted >= 1.6). torchvision's Faster R-CNN takes "
        f"{theirs / ours:.2f} x ours, {theirs / low:.2f} x D2Det bf16, {theirs / r50:.2f} x D2Det "
        "fp32."
    )
    return rows


def stages(models: dict[Precision, D2Det], images: ImageBatch) -> dict[str, Any]:
    """Prints and returns where a picture's time goes."""
    table = Table(
        "stage", *(f"{precision} ms" for precision in models), title="stages of D2Det R50"
    )
    spent = {precision: stage_ms(model, images) for precision, model in models.items()}
    for name in next(iter(spent.values())):
        table.add_row(name, *(f"{times[name]:.0f}" for times in spent.values()))
    console.print(table)
    return dict(spent)


def stage_ms(model: D2Det, images: ImageBatch) -> dict[str, float]:
    """Milliseconds of the layers of each stage, and of everything between them."""
    spent: dict[str, float] = defaultdict(float)
    parts = {
        "trunk": model.backbone,
        "pyramid": model.fpn,
        "proposal layers": model.rpn,
        "discriminative pooling": model.classification.pooling,
        "classification with pooling": model.classification,
        "dense regression": model.regression,
    }
    with timed(parts, spent):
        start = time.process_time()
        model.detect(images)
        total = (time.process_time() - start) * 1e3
    spent["class layers"] = spent.pop("classification with pooling")
    spent["class layers"] -= spent["discriminative pooling"]
    spent["anchors, NMS, RoIAlign and decoding"] = total - sum(spent.values())
    spent["all"] = total
    return spent


@contextmanager
def timed(parts: dict[str, nn.Module], spent: dict[str, float]) -> Iterator[None]:
    """Adds the milliseconds of every call of `parts` to `spent`."""
    starts: dict[str, float] = {}

    def before(name: str, *_: object) -> None:
        starts[name] = time.process_time()

    def after(name: str, *_: object) -> None:
        spent[name] += (time.process_time() - starts[name]) * 1e3

    handles = [p.register_forward_pre_hook(partial(before, name)) for name, p in parts.items()]
    handles += [p.register_forward_hook(partial(after, name)) for name, p in parts.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def second_stage(models: dict[Precision, D2Det], images: ImageBatch) -> dict[str, Any]:
    """Prints and returns the cost of the second stage against the number of proposals."""
    table = Table(
        "proposals", *(f"{precision} ms" for precision in models), title="second stage of D2Det R50"
    )
    spent = {precision: second_stage_ms(model, images) for precision, model in models.items()}
    for count in PROPOSALS:
        table.add_row(str(count), *(f"{times[count]:.0f}" for times in spent.values()))
    console.print(table)
    return dict(spent)


def second_stage_ms(model: D2Det, images: ImageBatch) -> dict[int, float]:
    """Milliseconds from the best proposals, repeated if there are too few, to detections."""
    features = model.features(images)
    proposals = model.propose(features, images)
    spent = {}
    for count in PROPOSALS:
        rows: Tensor = torch.arange(count) % len(proposals)
        chosen = Proposals(proposals.boxes[rows], proposals.scores[rows], torch.zeros_like(rows))
        run = partial(model.recognise, features, chosen, images.sizes)
        spent[count] = min(cpu_seconds(run) for _ in range(2)) * 1e3
    return spent


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    main()
