"""`d2det bench`: how fast a detector runs on this machine, and where the time goes."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from d2det.checkpoints.weights import LoadedDetector, load_detector
from d2det.inference.decode import read_image
from d2det.inference.options import BenchCommand
from d2det.inference.predictor import Picture, Predictor, choose_device
from d2det.inference.preprocess import resize_to_input, to_batch
from d2det.models.build import build_detector
from d2det.models.prepare import prepare_for_inference
from d2det.presets import get_preset
from d2det.structures import Category, ImageBatch


def run(options: BenchCommand) -> int:
    """Measures, prints medians in milliseconds, and returns the exit code.

    Raises:
        ValueError: No such preset, weights, device or picture.
    """
    detector = _detector(options)
    predictor = Predictor(detector, options)
    image = _image(options, predictor)
    parts = measure(predictor, detector, image, repeats=options.repeats)
    height, width = image.shape[:2]
    title = f"{detector.preset.name}, {options.precision}, {predictor.device}, {width} x {height}"
    Console().print(_table(f"{title}, {torch.get_num_threads()} threads", parts))
    if options.json_path is not None:
        options.json_path.parent.mkdir(parents=True, exist_ok=True)
        options.json_path.write_text(json.dumps({"title": title, "median_ms": parts}, indent=1))
    return 0


def measure(
    predictor: Predictor, detector: LoadedDetector, image: Picture, *, repeats: int
) -> dict[str, float]:
    """Returns median milliseconds of preparing a picture, of the network, and of the whole way."""

    def prepare() -> ImageBatch:
        resized = resize_to_input(image, predictor.input)
        return to_batch([resized], predictor.input).to(predictor.device)

    batch = prepare()
    with torch.inference_mode():
        return {
            "resize, normalise": _median_ms(prepare, repeats),
            "network": _median_ms(lambda: detector.model.detect(batch), repeats),
            "picture to detections": _median_ms(lambda: predictor.predict([image]), repeats),
        }


def _median_ms(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def _detector(options: BenchCommand) -> LoadedDetector:
    device = choose_device(options.device)
    if options.weights is not None:
        return load_detector(options.weights, device=device, precision=options.precision)
    assert options.preset is not None
    preset = get_preset(options.preset)
    torch.manual_seed(0)
    model = prepare_for_inference(build_detector(preset.model).to(device), options.precision)
    names = preset.classes or tuple(str(k) for k in range(preset.model.num_classes))
    return LoadedDetector(model, preset, tuple(Category(i, n) for i, n in enumerate(names)), "")


def _image(options: BenchCommand, predictor: Predictor) -> Picture:
    if options.image is not None:
        return read_image(options.image)
    size = predictor.input.short_side, predictor.input.long_side, 3
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)


def _table(title: str, parts: dict[str, float]) -> Table:
    table = Table(title=title, box=None, header_style="bold", title_justify="left")
    table.add_column("part")
    table.add_column("ms", justify="right")
    table.add_column("images/s", justify="right")
    for name, milliseconds in parts.items():
        table.add_row(name, f"{milliseconds:.1f}", f"{1000 / milliseconds:.2f}")
    return table
