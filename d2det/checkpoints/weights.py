"""Our weights files: safetensors with everything needed to use them in the metadata.

Metadata (JSON strings): `preset` the full typed preset (network, input size, normalisation),
`categories` external ids and names in label order, `version` of this format, `writer` the version
of the package, `sha256` of names, types, shapes and bytes of all tensors. No pickle anywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from d2det import __version__
from d2det.checkpoints.names import require_equal
from d2det.config import Preset
from d2det.models.build import build_detector
from d2det.models.detector import D2Det
from d2det.models.prepare import DTYPES, Precision, prepare_for_inference
from d2det.structures import Category

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Weights:
    """A weights file in memory, checked against its digest.

    tensors: state dict of the network that `preset.model` describes.  categories: in label order.
    digest: sha256 of the tensors, in hexadecimal.
    """

    tensors: dict[str, Tensor]
    preset: Preset
    categories: tuple[Category, ...]
    digest: str


@dataclass(frozen=True)
class Metadata:
    """What a weights file says of itself; its tensors are not looked at."""

    preset: Preset
    categories: tuple[Category, ...]
    digest: str


@dataclass(frozen=True)
class LoadedDetector:
    """A detector ready for inference, with what is known about its classes and input."""

    model: D2Det
    preset: Preset
    categories: tuple[Category, ...]
    digest: str


def save_weights(
    path: Path | str, model: D2Det, *, preset: Preset, categories: Sequence[Category]
) -> str:
    """Writes the weights of `model` to `path`, atomically, and returns their digest.

    The file remembers the model's own configuration, should it differ from that of `preset`.
    """
    return save_tensors(
        path,
        model.state_dict(),
        preset=preset.model_copy(update={"model": model.config}),
        categories=categories,
    )


def save_tensors(
    path: Path | str,
    tensors: Mapping[str, Tensor],
    *,
    preset: Preset,
    categories: Sequence[Category],
) -> str:
    """Writes the state dict `tensors` of a network of `preset` to `path`; returns their digest."""
    if len(categories) != preset.model.num_classes:
        raise ValueError(
            f"{len(categories)} categories for a network of {preset.model.num_classes} classes"
        )
    path = Path(path)
    # Safetensors wants dense row-major memory; channels-last weights are copied.
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = tensors_digest(dense)
    names = tuple(category.name for category in categories)
    metadata = {
        "version": str(FORMAT_VERSION),
        "writer": __version__,
        "preset": preset.model_copy(update={"classes": names}).model_dump_json(),
        "categories": json.dumps([asdict(category) for category in categories]),
        "sha256": digest,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(dense, temporary, metadata)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return digest


def read_weights(path: Path | str) -> Weights:
    """Returns the content of the weights file at `path`, verified.

    A ValueError says in one line what is wrong: no such file, another format, damaged tensors.
    """
    path = Path(path)
    metadata = read_metadata(path)
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if tensors_digest(tensors) != metadata.digest:
        raise ValueError(f"{path} is damaged: its tensors do not have the digest it states")
    return Weights(tensors, metadata.preset, metadata.categories, metadata.digest)


def read_metadata(path: Path | str) -> Metadata:
    """Returns what the weights file at `path` says of itself, in no time.

    A ValueError says in one line what is wrong: no such file, another format.
    """
    path = Path(path)
    with _opened(path) as file:
        metadata = file.metadata() or {}
    preset, categories = _parse(path, metadata)
    return Metadata(preset, categories, metadata["sha256"])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise ValueError(f"no weights file at {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a weights file ({error}); convert official .pth files first"
        ) from None


def load_detector(
    path: Path | str, *, device: torch.device | str = "cpu", precision: Precision = "fp32"
) -> LoadedDetector:
    """Returns the detector in the weights file at `path`, ready to predict on `device`.

    precision: of convolutions and matrix products; boxes and scores are float32 always.
    """
    if precision not in DTYPES:
        raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(DTYPES)}")
    weights = read_weights(path)
    with torch.device("meta"):
        model = build_detector(weights.preset.model)
    require_equal(weights.tensors, model.state_dict(), f"{path} does not fit its own preset")
    model.load_state_dict(weights.tensors, assign=True)
    model = prepare_for_inference(model.to(device), precision)
    return LoadedDetector(model, weights.preset, weights.categories, weights.digest)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns the sha256, in hexadecimal, of names, types, shapes and bytes of CPU tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _parse(path: Path, metadata: Mapping[str, str]) -> tuple[Preset, tuple[Category, ...]]:
    """The preset and the categories that the metadata of `path` states."""
    missing = {"version", "preset", "categories", "sha256"} - metadata.keys()
    if missing:
        raise ValueError(
            f"{path} was not written by d2det: its metadata lacks {', '.join(sorted(missing))}"
        )
    if metadata["version"] != str(FORMAT_VERSION):
        raise ValueError(
            f"{path} has format version {metadata['version']}, this package reads {FORMAT_VERSION}"
        )
    try:
        preset = Preset.model_validate_json(metadata["preset"])
        categories = tuple(Category(**row) for row in json.loads(metadata["categories"]))
    except (ValidationError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} has metadata that cannot be read: {reason}") from None
    return preset, categories
