"""Runs a detector over annotated pictures, so that what it finds can be scored."""

from __future__ import annotations

from pathlib import Path

from d2det.evaluation.results import table_of_predictions
from d2det.evaluation.tables import DetectionTable, GroundTruth
from d2det.inference.decode import DecodeError
from d2det.inference.limits import DEFAULT_LIMITS
from d2det.inference.options import PredictOptions
from d2det.inference.predictor import Predictor
from d2det.inference.sources import ReadPicture, Source, read_ahead
from d2det.progress import image_progress
from d2det.structures import Detections
from d2det.visualize import Picture

_AT_ONCE = 16
"""Pictures handed over together: enough to batch those of one shape, few enough for any memory."""


def predict_pictures(
    weights: Path, options: PredictOptions, ground_truth: GroundTruth, images: Path
) -> DetectionTable:
    """Returns what a detector finds in every annotated picture.

    Args:
        weights: its weights file.
        options: of inference.
        ground_truth: the annotations, which name the pictures.
        images: folder of the pictures.

    Raises:
        ValueError: a picture cannot be read, or the detector finds something of a category that the
            annotations do not have.
    """
    predictor = Predictor.load(weights, options)
    sources = [Source(images / name, name, Path(name)) for name in ground_truth.file_names]
    found: list[Detections] = []
    waiting: list[Picture] = []
    with image_progress() as progress:
        task = progress.add_task("predict", total=len(sources))
        for picture in read_ahead(sources, DEFAULT_LIMITS):
            waiting.append(_pixels(picture))
            if len(waiting) == _AT_ONCE or len(found) + len(waiting) == len(sources):
                found += predictor.predict(waiting)
                progress.advance(task, len(waiting))
                waiting = []
    by_id = dict(zip(ground_truth.image_ids.tolist(), found, strict=True))
    return table_of_predictions(by_id, predictor.categories, ground_truth)


def _pixels(picture: ReadPicture) -> Picture:
    if isinstance(picture.content, DecodeError):
        raise ValueError(f"{picture.source.path}: {picture.content}")
    return picture.content
