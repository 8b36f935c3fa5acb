"""Detectors that the endpoint can hold: a weights file, or any callable by import path."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from d2det.checkpoints.weights import read_metadata
from d2det.inference.options import PredictOptions
from d2det.structures import Category, Detections

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class ModelInfo:
    """What is known about a detector without loading it.

    digest: sha256 of its weights, in hexadecimal; empty for a callable.
    max_detections: at which it stops, where that is known.
    reads_encoded: it takes the encoded bytes of pictures; nothing is decoded for it.
    """

    name: str
    categories: tuple[Category, ...]
    preset: str = ""
    digest: str = ""
    has_masks: bool = False
    max_detections: int | None = None
    reads_encoded: bool = False

    @property
    def version(self) -> str:
        """Short name of these very weights."""
        return self.digest[:12] or "1"


class Model(Protocol):
    """A detector as the engine uses it."""

    has_masks: bool

    def predict(self, images: Sequence[Any], *, masks: bool) -> list[Detections]:
        """Returns what is in each picture, in its own frame, best first."""

    def cost(self, height: int, width: int) -> int:
        """Returns the pixels that a picture of this size runs through the network."""

    def bucket(self, height: int, width: int) -> tuple[int, int]:
        """Returns the shape in which pictures of this size run; one shape runs together."""

    def warm_up_sizes(self) -> list[tuple[int, int]]:
        """Returns (height, width) of pictures that together touch every shape, usual ones first."""


def describe(
    weights: Path | None, model: str | None, name: str, options: PredictOptions | None = None
) -> ModelInfo:
    """Returns what is known about a weights file, or about a callable by import path.

    options: how it will predict.

    Raises:
        ValueError: There is no such file or callable.
    """
    if model is not None:
        return describe_callable(load_callable(model), name)
    assert weights is not None
    metadata, options = read_metadata(weights), options or PredictOptions()
    return ModelInfo(
        name=name,
        categories=metadata.categories,
        preset=metadata.preset.name,
        digest=metadata.digest,
        has_masks=metadata.preset.model.mask is not None and options.masks,
        max_detections=options.max_detections or metadata.preset.model.inference.max_detections,
    )


def describe_callable(predict: Callable[..., Any], name: str) -> ModelInfo:
    """Returns what a callable says of itself in `categories`, `has_masks` and `reads_encoded`."""
    categories = getattr(predict, "categories", (Category(0, "object"),))
    return ModelInfo(
        name=name,
        categories=tuple(categories),
        preset=getattr(predict, "__name__", type(predict).__name__),
        has_masks=bool(getattr(predict, "has_masks", False)),
        reads_encoded=bool(getattr(predict, "reads_encoded", False)),
    )


def load_callable(path: str) -> Callable[..., Any]:
    """Returns the callable at "module:name"; a class is called to make one.

    Raises:
        ValueError: There is none.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise ValueError(f"model {path!r} must be 'module:callable'")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model {path!r} cannot be imported: {error}") from None
    made = found() if isinstance(found, type) else found
    if not callable(made):
        raise ValueError(f"model {path!r} is not callable")
    return made  # type: ignore[no-any-return]


def load_model(weights: Path | None, model: str | None, options: PredictOptions) -> Model:
    """Returns the detector, loaded.

    Raises:
        ValueError: With what is wrong with the file, the callable or the device.
    """
    if model is not None:
        return CallableModel(load_callable(model))
    # Imported here: the processes that talk HTTP need this module, and no torch.
    from d2det_platform.serve.predictors import WeightsModel

    assert weights is not None
    return WeightsModel(weights, options)


class CallableModel:
    """Any callable from a list of pictures to a list of `Detections`, as a model."""

    def __init__(self, predict: Callable[..., Any]) -> None:
        self._predict = predict
        self.has_masks = bool(getattr(predict, "has_masks", False))
        self.reads_encoded = bool(getattr(predict, "reads_encoded", False))

    def predict(self, images: Sequence[Any], *, masks: bool) -> list[Detections]:
        """Returns what the callable finds."""
        return list(self._predict(list(images)))

    def cost(self, height: int, width: int) -> int:
        """Returns the pixels of the picture."""
        return height * width

    def bucket(self, height: int, width: int) -> tuple[int, int]:
        """Returns one bucket for all: what the callable makes of shapes is its business."""
        return (0, 0)

    def warm_up_sizes(self) -> list[tuple[int, int]]:
        """Returns one size; encoded pictures cannot be made up."""
        return [] if self.reads_encoded else [(480, 640)]
