"""What labels pictures: a Predictor of weights, or any callable by its import path."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2det.checkpoints.weights import load_detector, read_weights
from d2det.config import InputConfig
from d2det.inference.options import PredictOptions
from d2det.inference.predictor import Predictor, choose_device
from d2det.structures import Category, Detections
from d2det_platform.label.cost import CostModel
from d2det_platform.label.options import LabelOptions

Picture = NDArray[np.uint8]
PredictPictures = Callable[[Sequence[Picture]], list[Detections]]


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model without running it.

    digest: of its tensors, or of its import path.  input: of its network; None for a callable.
    """

    digest: str
    name: str
    categories: tuple[Category, ...]
    input: InputConfig | None


@dataclass(frozen=True)
class Model:
    """A model ready to run.

    predict: pictures of any sizes to their detections, batched as the model likes.
    """

    info: ModelInfo
    predict: PredictPictures


def describe_model(options: LabelOptions) -> ModelInfo:
    """Returns what is known of the model that the options name.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    if options.weights:
        weights = read_weights(options.weights)
        return ModelInfo(
            weights.digest, weights.preset.name, weights.categories, weights.preset.input
        )
    found = _imported(options.model)
    names = options.classes or tuple(getattr(found, "classes", ())) or ("object",)
    # A version attribute lets a model say that it finds other things now.
    identity = f"{options.model} {getattr(found, 'version', '')}"
    digest = hashlib.sha256(identity.encode()).hexdigest()
    categories = tuple(Category(id=k, name=name) for k, name in enumerate(names))
    return ModelInfo(digest, options.model, categories, None)


def load_model(options: LabelOptions, info: ModelInfo, *, batch_pixels: int) -> Model:
    """Returns the model that the options name, ready to predict whole pictures and windows.

    Raises:
        ValueError: it is another one than was planned with.
    """
    if not options.weights:
        return Model(info, _in_batches(_instance(options.model), batch_pixels))
    # Windows are cut by the caller, who knows the scenes.
    whole = options.model_copy(update={"tile": None, "batch_pixels": batch_pixels})
    predict_options = _predict_options(whole)
    device = choose_device(predict_options.device)
    detector = load_detector(options.weights, device=device, precision=options.precision)
    if detector.digest != info.digest:
        raise ValueError(
            f"{options.weights} has changed: {detector.digest[:10]}, not {info.digest[:10]}"
        )
    return Model(info, Predictor(detector, predict_options).predict)


def _predict_options(options: LabelOptions) -> PredictOptions:
    names = PredictOptions.model_fields
    return PredictOptions(**{name: getattr(options, name) for name in names})


def cost_model(options: LabelOptions, info: ModelInfo) -> CostModel:
    """Returns what pictures cost the model."""
    return CostModel.of(options, info.input)


def _imported(path: str) -> object:
    module, _, name = path.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` has it: a model of one's own beside the command
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--model {path}: {error}") from error


def _instance(path: str) -> PredictPictures:
    found = _imported(path)
    instance = found() if inspect.isclass(found) else found
    if not callable(instance):
        raise ValueError(f"--model {path} is not callable")
    return instance  # type: ignore[no-any-return]


def _in_batches(predict: PredictPictures, batch_pixels: int) -> PredictPictures:
    """The callable, given no more than `batch_pixels` at once (at least one picture)."""

    def batches(images: Sequence[Picture]) -> Iterator[Sequence[Picture]]:
        batch: list[Picture] = []
        pixels = 0
        for image in images:
            size = image.shape[0] * image.shape[1]
            if batch and pixels + size > batch_pixels:
                yield batch
                batch, pixels = [], 0
            batch.append(image)
            pixels += size
        if batch:
            yield batch

    def predicted(images: Sequence[Picture]) -> list[Detections]:
        found: list[Detections] = []
        for batch in batches(images):
            each = predict(batch)
            if len(each) != len(batch):
                raise ValueError(
                    f"the model returned {len(each)} results for {len(batch)} pictures"
                )
            found += each
        return found

    return predicted
