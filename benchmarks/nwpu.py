"""Trains D2Det (lite) and torchvision's Mask R-CNN alike on NWPU VHR-10, and scores both.

Both sides start from the same MobileNetV2 trunk with a 128-channel pyramid, see the same pictures
and labels, and get the same minutes on the same cores; each uses the recipe that suits it. Scores
are COCO's, by the same evaluator.

    python benchmarks/nwpu.py --data DIR --trunk FILE --minutes 60 [--sides d2det torchvision]
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import training
import tyro
from pycocotools import mask as rle_codec
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms.functional import to_tensor

from d2det.data.coco import CocoDataset
from d2det.data.samples import Sample
from d2det.evaluation.coco import evaluate_coco
from d2det.evaluation.results import read_ground_truth, table_of_predictions
from d2det.memory import prefer_huge_pages
from d2det.structures import Detections, Rle

SHORT_SIDE, LONG_SIDE, JITTER = 448, 768, 96
MAIN_METRICS = ("bbox/AP", "bbox/AP50", "bbox/AP75", "segm/AP", "segm/AP50", "segm/AP75")


@dataclass
class Arguments:
    """What to run."""

    data: Path
    """NWPU VHR-10 in COCO format: images/, instances_train.json, instances_val.json."""
    trunk: Path
    """MobileNetV2 weights (torchvision state dict)."""
    minutes: float = 60.0
    """Training time of torchvision's side, evaluation not included."""
    epochs: int = 24
    """Epochs of D2Det's side, whose schedule must know its end; the table shows its minutes."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of D2Det's training (torchvision's detectors train in fp32 on CPUs)."""
    sides: tuple[Literal["d2det", "torchvision"], ...] = ("d2det", "torchvision")
    out: Path = Path("benchmarks/results/nwpu")
    """Folder of the runs and of the result table, nwpu.json."""


def main(arguments: Arguments) -> None:
    """Runs the sides one after the other and prints the table."""
    torch.manual_seed(0)
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = {"d2det": run_d2det, "torchvision": run_torchvision}
    results = {side: runs[side](arguments) for side in arguments.sides}
    (arguments.out / "nwpu.json").write_text(json.dumps(results, indent=1))
    table = Table("", *results)
    for name in next(iter(results.values())):
        table.add_row(name, *(f"{result[name]:.3f}" for result in results.values()))
    Console().print(table)


def run_d2det(arguments: Arguments) -> dict[str, float]:
    """Trains by the Ray job, as a user would, and reports the scores after its last epoch."""
    options: dict[str, object] = {
        "preset": "d2det_lite_instance",
        "name": "d2det",
        "storage": arguments.out,
        "trunk": arguments.trunk,
        "data.train-images": arguments.data / "images",
        "data.train-annotations": arguments.data / "instances_train.json",
        "data.val-annotations": arguments.data / "instances_val.json",
        "train.epochs": arguments.epochs,
        "train.precision": arguments.precision,
        "cluster.cpus-per-worker": torch.get_num_threads(),
        "evaluate-every-epochs": max(1, arguments.epochs // 3),
    }
    rows = training.train(options)
    metrics = training.last_evaluation(rows)
    return {
        **{name: metrics[name] for name in MAIN_METRICS},
        "epochs": arguments.epochs,
        "training minutes": training.minutes(rows),
        "inference pictures/s": metrics["images_per_s"],
    }


def run_torchvision(arguments: Arguments) -> dict[str, float]:
    """Trains torchvision's Mask R-CNN for the given minutes by its own recipe."""
    prefer_huge_pages()  # as the training job does
    images = arguments.data / "images"
    train = CocoDataset(images, arguments.data / "instances_train.json")
    val = CocoDataset(images, arguments.data / "instances_val.json", masks=False)
    model = build_torchvision(arguments.trunk, len(train.categories) + 1)
    steps = train_torchvision(model, train, seconds=60 * arguments.minutes)
    started = time.perf_counter()
    found = {
        int(val.index.image_ids[i]): predict_torchvision(model, val.image(i))
        for i in range(len(val))
    }
    speed = len(val) / (time.perf_counter() - started)
    ground_truth = read_ground_truth(arguments.data / "instances_val.json")
    table = table_of_predictions(found, val.categories, ground_truth)
    metrics = evaluate_coco(ground_truth, table, kinds=("bbox", "segm"))
    return {
        **{name: metrics[name] for name in MAIN_METRICS},
        "epochs": steps * 2 / len(train),
        "training minutes": arguments.minutes,
        "inference pictures/s": speed,
    }


def build_torchvision(trunk: Path, num_classes: int) -> MaskRCNN:
    """Returns Mask R-CNN on MobileNetV2 with a 128-channel pyramid, background as class 0."""
    features = mobilenet_v2(norm_layer=FrozenBatchNorm2d).features
    state = torch.load(trunk, map_location="cpu", weights_only=True)
    # Whole or not at all: a trunk that is not the pretrained one would be an unfair peer.
    features.load_state_dict(
        {
            name.removeprefix("features."): tensor
            for name, tensor in state.items()
            if not name.endswith("num_batches_tracked")
        }
    )
    stages = {"3": "0", "6": "1", "13": "2", "17": "3"}
    backbone = BackboneWithFPN(features, stages, [24, 32, 96, 320], 128)
    sizes = tuple(range(SHORT_SIDE - JITTER, SHORT_SIDE + JITTER + 1, 32))
    model = MaskRCNN(backbone, num_classes, min_size=sizes, max_size=LONG_SIDE)
    return model.to(memory_format=torch.channels_last)


def train_torchvision(model: nn.Module, data: CocoDataset, *, seconds: float) -> int:
    """Trains for `seconds`, batch 2, SGD at 0.01 with two drops; returns the number of steps."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)
    choose, step, started = random.Random(0), 0, time.perf_counter()
    model.train()
    while (share := (time.perf_counter() - started) / seconds) < 1:
        rate = 0.01 * min(1.0, (step + 1) / 200) * (0.1 ** ((share > 0.75) + (share > 0.92)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        samples = [data[choose.randrange(len(data))] for _ in range(2)]
        pairs = [torchvision_example(sample, flip=choose.random() < 0.5) for sample in samples]
        losses = model([image for image, _ in pairs], [target for _, target in pairs])
        optimizer.zero_grad()
        torch.stack(tuple(losses.values())).sum().backward()
        optimizer.step()
        step += 1
    return step


def torchvision_example(sample: Sample, *, flip: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns a sample as torchvision's detectors take it, with its masks if it has any."""
    height, width = sample.image.shape[:2]
    image, boxes = sample.image, np.clip(sample.boxes, 0, [width, height, width, height])
    if flip:
        image = image[:, ::-1]
        boxes = np.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1)
    target = {
        "boxes": torch.from_numpy(boxes.astype(np.float32)),
        "labels": torch.from_numpy(sample.labels + 1),
    }
    if sample.masks is not None:
        masks = rle_codec.decode([{"size": (height, width), "counts": m} for m in sample.masks])
        masks = masks.transpose(2, 0, 1)[..., ::-1] if flip else masks.transpose(2, 0, 1)
        target["masks"] = torch.from_numpy(np.ascontiguousarray(masks))
    return to_tensor(np.ascontiguousarray(image)), target


@torch.no_grad()
def predict_torchvision(model: nn.Module, image: np.ndarray) -> Detections:
    """Returns Mask R-CNN's detections in a picture (H, W, 3) uint8, masks encoded."""
    model.eval()
    model.transform.min_size = (SHORT_SIDE,)
    found = model([to_tensor(image)])[0]
    binary = (found["masks"][:, 0] > 0.5).numpy().astype(np.uint8)
    encoded = rle_codec.encode(np.asfortranarray(binary.transpose(1, 2, 0)))
    return Detections(
        boxes=found["boxes"],
        scores=found["scores"],
        labels=found["labels"] - 1,
        size=image.shape[:2],
        masks=tuple(Rle(size=tuple(m["size"]), counts=m["counts"]) for m in encoded),
        mask_scores=found["scores"],
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
