"""COCO evaluation against pycocotools and faster-coco-eval, on a made result of COCO val's size.

    python benchmarks/evaluation.py [--kind bbox segm] [--repeats 3] [--json OUT]

All sides start from the same parsed JSON (a result list, an annotation dictionary already indexed)
and end with the 12 numbers. They run one after the other within each repeat, on one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import io
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from pycocotools import mask as coco_mask
from rich.console import Console
from rich.table import Table

from d2det.evaluation.coco import evaluate_coco
from d2det.evaluation.results import read_detections, read_ground_truth
from d2det.evaluation.tables import IouKind

WIDTH, HEIGHT = 640, 480


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", nargs="+", choices=("bbox", "segm"), default=["bbox", "segm"])
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--objects", type=int, default=36_000)
    parser.add_argument("--detections", type=int, default=500_000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/evaluation.json"))
    args = parser.parse_args()
    report: dict[str, Any] = {"setting": {k: v for k, v in vars(args).items() if k != "json"}}
    for kind in args.kind:
        annotations, results = made_result(args, with_masks=kind == "segm")
        report[kind] = compare(annotations, results, kind, args.repeats)
        show(kind, report[kind], args)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1, default=str))


def made_result(
    args: argparse.Namespace, *, with_masks: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations and results in which about half the detections lie near an object."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, args.classes, (args.images, 3))
    image = np.sort(rng.integers(0, args.images, args.objects))
    label = classes[image, rng.integers(0, 3, args.objects)]
    size = np.exp(rng.normal(4, 1, (args.objects, 2))).clip(4, 400)
    corner = rng.uniform(0, 1, (args.objects, 2)) * (np.array([WIDTH, HEIGHT]) - size).clip(1)
    boxes = np.concatenate((corner, size), 1).round(2)
    near = rng.integers(0, args.objects, args.detections)
    moved = boxes[near] + rng.normal(0, 0.15, (args.detections, 4)) * np.tile(size[near], 2)
    moved[:, 2:] = moved[:, 2:].clip(1)
    right = rng.random(args.detections) < 0.5
    found = np.where(right, label[near], rng.integers(0, args.classes, args.detections))
    scores = (rng.beta(1, 4, args.detections) + 0.3 * right).clip(0, 1).round(4)
    annotations = {
        "images": [{"id": i, "width": WIDTH, "height": HEIGHT} for i in range(args.images)],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(args.classes)],
        "annotations": [
            {
                "id": n + 1,
                "image_id": int(image[n]),
                "category_id": int(label[n]),
                "bbox": boxes[n].tolist(),
                "area": float(0.8 * boxes[n, 2] * boxes[n, 3]),
                "iscrowd": int(rng.random() < 0.01),
                **({"segmentation": octagon(boxes[n])} if with_masks else {}),
            }
            for n in range(args.objects)
        ],
    }
    results = [
        {
            "image_id": int(image[near[n]]),
            "category_id": int(found[n]),
            "score": float(scores[n]),
            # With both, pycocotools would take a detection's size from its box.
            **({"segmentation": octagon(moved[n])} if with_masks else {"bbox": moved[n].tolist()}),
        }
        for n in range(args.detections)
    ]
    return annotations, results


def octagon(box: np.ndarray) -> dict[str, Any]:
    """Run lengths, as JSON holds them, of the octagon in a box (x, y, width, height)."""
    x, y, w, h = box.tolist()
    corners = [(0.3, 0), (0.7, 0), (1, 0.3), (1, 0.7), (0.7, 1), (0.3, 1), (0, 0.7), (0, 0.3)]
    polygon = [c for u, v in corners for c in (x + u * w, y + v * h)]
    rle = coco_mask.frPyObjects([polygon], HEIGHT, WIDTH)[0]
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def compare(
    annotations: dict[str, Any], results: list[dict[str, Any]], kind: IouKind, repeats: int
) -> dict[str, Any]:
    sides = {
        "d2det": d2det_side(annotations, kind),
        f"pycocotools {importlib.metadata.version('pycocotools')}": pycocotools_side(
            annotations, kind
        ),
    }
    with contextlib.suppress(ImportError):
        version = importlib.metadata.version("faster-coco-eval")
        sides[f"faster-coco-eval {version}"] = faster_side(annotations, kind)
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    numbers: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, side in sides.items():
            given = copy.deepcopy(results)
            start_wall, start_cpu = time.perf_counter(), time.process_time()
            with contextlib.redirect_stdout(io.StringIO()):
                numbers[name] = side(given)
            wall[name].append(time.perf_counter() - start_wall)
            cpu[name].append(time.process_time() - start_cpu)
            del given
    reference = np.array(numbers[next(name for name in sides if name.startswith("pyco"))])
    return {
        name: {
            "cpu_s": statistics.median(cpu[name]),
            "wall_s": statistics.median(wall[name]),
            "largest_difference": float(np.abs(np.array(numbers[name]) - reference).max()),
            "AP": numbers[name][0],
        }
        for name in sides
    }


def d2det_side(annotations: dict[str, Any], kind: IouKind) -> Callable[[list[Any]], list[float]]:
    truth = read_ground_truth(annotations)

    def run(results: list[Any]) -> list[float]:
        # A new object each time, so that masks encoded by an earlier repeat are not reused.
        fresh = copy.copy(truth)
        fresh.__dict__.pop("masks", None)
        metrics = evaluate_coco(fresh, read_detections(results, fresh), kinds=[kind])
        return list(metrics.as_dict().values())

    return run


def pycocotools_side(
    annotations: dict[str, Any], kind: IouKind
) -> Callable[[list[Any]], list[float]]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = copy.deepcopy(annotations)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()

    def run(results: list[Any]) -> list[float]:
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return [float(value) for value in evaluation.stats]

    return run


def faster_side(annotations: dict[str, Any], kind: IouKind) -> Callable[[list[Any]], list[float]]:
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(copy.deepcopy(annotations))

    def run(results: list[Any]) -> list[float]:
        evaluation = COCOeval_faster(truth, truth.loadRes(results), kind, rle_iou_max_workers=1)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return [float(value) for value in evaluation.stats[:12]]

    return run


def show(kind: str, rows: dict[str, Any], args: argparse.Namespace) -> None:
    table = Table(
        title=f"COCO {kind}: {args.images} pictures, {args.classes} classes, {args.objects} "
        f"objects, {args.detections} detections"
    )
    for heading in ("", "CPU s", "wall s", "d2det is faster by", "largest difference", "AP"):
        table.add_column(heading, justify="left" if not heading else "right")
    own = rows["d2det"]["cpu_s"]
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['cpu_s']:.2f}",
            f"{row['wall_s']:.2f}",
            f"{row['cpu_s'] / own:.1f}x",
            f"{row['largest_difference']:.1e}",
            f"{row['AP']:.4f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
