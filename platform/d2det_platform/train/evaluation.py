"""Scores weights on the validation pictures, each rank labelling its part of them."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from d2det.checkpoints.weights import LoadedDetector
from d2det.data.coco import CocoDataset
from d2det.evaluation.coco import evaluate_coco
from d2det.evaluation.results import coco_results, read_ground_truth, table_of_predictions
from d2det.evaluation.tables import IouKind
from d2det.inference.options import PredictOptions
from d2det.inference.predictor import Predictor
from d2det.structures import Detections
from d2det_platform.store import local_copy
from d2det_platform.train.options import TrainOptions
from d2det_platform.train.ranks import Ranks

PREDICTIONS = "predictions.json"
"""COCO results of the best weights on the validation pictures, in the run folder."""
CHUNK = 16
"""Pictures decoded at a time: enough to batch those of one shape, few enough for any memory."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of one set of weights.

    metrics: COCO's numbers by names such as bbox/AP, and `images_per_s`, the speed of decoding and
        prediction over all ranks.
    results: the detections as a COCO results list.
    """

    metrics: dict[str, float]
    results: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields by name."""
        return asdict(self)


def evaluate(detector: LoadedDetector, options: TrainOptions, ranks: Ranks) -> Evaluation:
    """Returns how `detector` does on the run's validation pictures, on every rank."""
    data = options.data
    assert data.val_annotations is not None
    dataset = CocoDataset(data.val_images or data.train_images, data.val_annotations, masks=False)
    predictor = Predictor(detector, PredictOptions(device=str(ranks.device)))
    mine = range(ranks.rank, len(dataset), ranks.count)
    started = time.perf_counter()
    found = ranks.together(lambda: _predict(predictor, dataset, mine))
    seconds = time.perf_counter() - started
    merged = {key: value for part in ranks.gather(found) for key, value in part.items()}
    with local_copy(data.val_annotations) as path:
        ground_truth = read_ground_truth(Path(path))
    kinds: tuple[IouKind, ...] = ("bbox",) if options.model.mask is None else ("bbox", "segm")
    table = table_of_predictions(merged, dataset.categories, ground_truth)
    metrics = evaluate_coco(ground_truth, table, kinds=kinds).as_dict()
    speed = len(dataset) / max(ranks.gather(seconds))
    return Evaluation({**metrics, "images_per_s": speed}, coco_results(table, ground_truth))


def _predict(predictor: Predictor, dataset: CocoDataset, mine: range) -> dict[int, Detections]:
    """What is in the pictures at the positions `mine`, by image id."""
    found: dict[int, Detections] = {}
    for start in range(0, len(mine), CHUNK):
        chunk = mine[start : start + CHUNK]
        detections = predictor.predict([dataset.image(position) for position in chunk])
        ids = dataset.index.image_ids[list(chunk)].tolist()
        found.update(zip(ids, detections, strict=True))
    return found
