"""Pictures a second of the training loader, against the obvious code for the same input.

    python benchmarks/data.py [--data FOLDER] [--repeats 3] [--threads 2] [--json OUT]

The other side is what a plain data set class does: cv2.imread, a canvas-sized mask of every object
from pycocotools, cv2.resize of each, NumPy normalisation. Both sides run one after the other within
each repeat; a repeat is an epoch. Without --data, 40 made scenes of 640 x 480 pixels are written
and used. The last row counts the loader's wall time with several threads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import pycocotools.mask
import torch
from rich.console import Console
from rich.table import Table

from d2det.config import InputConfig, TrainConfig
from d2det.data.coco import open_coco
from d2det.data.loader import TrainingLoader
from d2det.data.samples import DetectionDataset
from d2det.data.synthetic import write_dataset
from d2det.inference.preprocess import padded_size, resize_scale, resized_size

INPUTS = {
    "800 x 1333": InputConfig(),
    "448 x 746": InputConfig(short_side=448, long_side=746),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="COCO-format folder")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/data.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.data is None:
            write_dataset(folder, split="train", num_images=40, size=(480, 640))
        rows = measure(args.data or Path(folder), args)
    show(rows)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(rows, indent=1))


def measure(folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for has_masks in (False, True):
        data = open_coco(folder, "train", masks=has_masks)
        for name, config in INPUTS.items():
            train = TrainConfig(global_batch=args.batch, flip=0.5)
            sides: dict[str, Callable[[int], int]] = {
                "d2det": loader_side(data, config, train, 1),
                "plain": plain_side(data, config, train),
                f"d2det, {args.threads} threads": loader_side(data, config, train, args.threads),
            }
            rows.append({"input": name, "masks": has_masks, **compare(sides, args.repeats)})
    return rows


def compare(sides: dict[str, Callable[[int], int]], repeats: int) -> dict[str, Any]:
    """Median CPU and wall milliseconds a picture of each side."""
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    wall: dict[str, list[float]] = {name: [] for name in sides}
    for epoch in range(repeats):
        for name, run in sides.items():
            start_cpu, start_wall = time.process_time(), time.perf_counter()
            count = run(epoch)
            cpu[name].append((time.process_time() - start_cpu) * 1e3 / count)
            wall[name].append((time.perf_counter() - start_wall) * 1e3 / count)
    return {
        name: {"cpu_ms": statistics.median(cpu[name]), "wall_ms": statistics.median(wall[name])}
        for name in sides
    }


def loader_side(
    data: DetectionDataset, config: InputConfig, train: TrainConfig, num_threads: int
) -> Callable[[int], int]:
    loader = TrainingLoader(data, config, train, num_threads=num_threads)
    return lambda epoch: sum(len(batch) for batch in loader.batches(epoch))


def plain_side(
    data: DetectionDataset, config: InputConfig, train: TrainConfig
) -> Callable[[int], int]:
    random = np.random.default_rng(0)

    def run(epoch: int) -> int:
        order = random.permutation(len(data)).tolist()
        for start in range(0, len(order), train.global_batch):
            members = order[start : start + train.global_batch]
            plain_batch([plain_example(data, i, config, random.random() < 0.5) for i in members])
        return len(order)

    return run


def plain_example(
    data: DetectionDataset, position: int, config: InputConfig, is_mirrored: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(3, H, W) float32 pixels, (G, 4) boxes and (G, H, W) masks of one picture."""
    index = data.index
    image = cv2.cvtColor(cv2.imread(data.path(position)), cv2.COLOR_BGR2RGB)
    height, width = image.shape[:2]
    size = resized_size(height, width, config.short_side, config.long_side)
    image = cv2.resize(image, size[::-1])
    rows = index.annotations(position)
    boxes = index.boxes[rows] * resize_scale(height, width, config.short_side, config.long_side)
    masks = None
    if index.masks is not None:
        strings = [index.masks[row] for row in range(rows.start, rows.stop)]
        rles = [{"size": [height, width], "counts": string} for string in strings]
        canvases = [pycocotools.mask.decode(rle) for rle in rles]
        resized = [cv2.resize(c, size[::-1], interpolation=cv2.INTER_NEAREST) for c in canvases]
        masks = np.stack(resized) if resized else np.zeros((0, *size), np.uint8)
    if is_mirrored:
        image = np.ascontiguousarray(image[:, ::-1])
        boxes[:, [0, 2]] = size[1] - boxes[:, [2, 0]]
        masks = None if masks is None else np.ascontiguousarray(masks[:, :, ::-1])
    pixels = (image.astype(np.float32) - np.float32(config.mean)) / np.float32(config.std)
    return pixels.transpose(2, 0, 1), boxes, masks


def plain_batch(examples: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]) -> None:
    shapes = np.array([pixels.shape[1:] for pixels, _, _ in examples])
    height, width = padded_size(*shapes.max(0).tolist())
    batch = torch.zeros((len(examples), 3, height, width))
    for slot, (pixels, _, masks) in zip(batch, examples, strict=True):
        slot[:, : pixels.shape[1], : pixels.shape[2]] = torch.from_numpy(pixels)
        if masks is not None:
            np.pad(masks, ((0, 0), (0, height - masks.shape[1]), (0, width - masks.shape[2])))


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="Training input, milliseconds of CPU a picture")
    names = [name for name in rows[0] if name not in ("input", "masks")]
    for head in ("input", "masks", *names[:2], "ratio", f"pictures/s, {names[2]}"):
        table.add_column(head, justify="right")
    for row in rows:
        ours, plain = (row[name]["cpu_ms"] for name in names[:2])
        numbers = f"{ours:.1f}", f"{plain:.1f}", f"{plain / ours:.1f}x"
        rate = f"{1e3 / row[names[2]]['wall_ms']:.0f}"
        table.add_row(row["input"], "yes" if row["masks"] else "no", *numbers, rate)
    Console().print(table)


if __name__ == "__main__":
    main()
