"""Merging the windows of a scene against the usual way: one class-wise NMS over everything.

    python benchmarks/merge.py [--detections 100000] [--repeats 5] [--json OUT]

Scenes of known objects; every window sees the part of an object that lies in it, a pixel or so off.
Reported: CPU time on one thread, and how many objects come out beside how many there are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torchvision.ops import batched_nms

from d2det.inference.merge import merge_windows
from d2det.inference.windows import Window, WindowDetections, cut_windows
from d2det.structures import Detections

T = TypeVar("T")
TILE, OVERLAP, CLASSES = 800, 200, 10
SCENES = (
    # name, side of the scene, smallest and largest side of an object
    ("wide, all small", 30_000, (15, 60)),
    ("wide, some large", 30_000, (15, 500)),
    ("crowded", 6_000, (8, 24)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--detections", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/merge.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [compare(*scene, args.detections, args.repeats) for scene in SCENES]
    show(rows)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(rows, indent=1))


def compare(
    name: str, side: int, sides: tuple[int, int], detections: int, repeats: int
) -> dict[str, float | str]:
    boxes, labels = made_objects(side, sides, detections)
    windows = cut_windows((side, side), tile=TILE, overlap=OVERLAP)
    results = [look(window, boxes, labels, side) for window in windows]
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(repeats):
        merged, seconds = timed(lambda: merge_windows(results, (side, side)))
        ours.append(seconds)
        kept, seconds = timed(lambda: usual_way(results))
        theirs.append(seconds)
    audit = merged.audit
    return {
        "scene": name,
        "windows": len(windows),
        "found": audit.found,
        "objects": len(boxes),
        "merged": audit.objects,
        "NMS": kept,
        "merge s": statistics.median(ours),
        "NMS s": statistics.median(theirs),
        "split": audit.split_rate,
    }


def made_objects(
    side: int, sides: tuple[int, int], detections: int
) -> tuple[np.ndarray, np.ndarray]:
    """Objects (G, 4) of a scene, by their tops, so many that windows find about `detections`."""
    random = np.random.default_rng(0)
    repeated = ((TILE + np.mean(sides)) / (TILE - OVERLAP)) ** 2  # windows that see an object
    count = int(detections / repeated)
    corner = random.uniform(0, side, (count, 2))
    size = np.exp(random.uniform(*np.log(sides), (count, 2)))
    boxes = np.concatenate((corner, np.minimum(corner + size, side)), 1)
    return boxes[np.argsort(boxes[:, 1])], random.integers(0, CLASSES, count)


def look(window: Window, boxes: np.ndarray, labels: np.ndarray, side: int) -> WindowDetections:
    """What a detector finds in a window: the part of each object that lies in it, 1 px off."""
    random = np.random.default_rng((window.x, window.y))
    frame = np.array([window.x, window.y, window.x + window.width, window.y + window.height])
    part = np.concatenate((np.maximum(boxes, frame)[:, :2], np.minimum(boxes, frame)[:, 2:]), 1)
    seen = (part[:, 2:] - part[:, :2] >= 4).all(1)
    drawn = part[seen] + random.normal(0, 0.7, (seen.sum(), 4))
    drawn = np.clip(drawn, np.tile(frame[:2], 2), np.tile(frame[2:], 2))
    found = Detections(
        boxes=torch.tensor(drawn, dtype=torch.float32),
        scores=torch.tensor(random.uniform(0.3, 1, len(drawn)), dtype=torch.float32),
        labels=torch.tensor(labels[seen]),
        size=(side, side),
    )
    return WindowDetections(window, found)


def usual_way(results: list[WindowDetections]) -> int:
    """Number of detections that class-wise NMS at IoU 0.5 leaves of all windows together."""
    boxes = torch.cat([result.found.boxes for result in results])
    scores = torch.cat([result.found.scores for result in results])
    labels = torch.cat([result.found.labels for result in results])
    return len(batched_nms(boxes, scores, labels, 0.5))


def timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def show(rows: list[dict[str, float | str]]) -> None:
    title = "merging windows (CPU seconds, 1 thread)"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "scene" else "right")
    for row in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
