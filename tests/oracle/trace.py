"""Official test-time traces: the network's weights, the picture, and what came out of each stage.

Weights are drawn from a counter-based generator keyed by the tensor's name, so the recipe (a list
of names, shapes, means and deviations) stands for a checkpoint.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from tests.oracle.make_picture import make_picture
from tests.shared import shared_dir

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Trace:
    """One official run: `picture` (H, W, 3) uint8 RGB, stored arrays, and facts about them."""

    preset: str
    recipe: str
    picture: np.ndarray
    arrays: dict[str, np.ndarray]
    facts: dict

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name].copy())

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def boxes(self, name: str) -> tuple[Tensor, Tensor]:
        """Returns half-open boxes (D, 4) and scores (D,) of a stored (D, 5) array."""
        rows = self[name]
        grown = rows[:, :4].clone()
        grown[:, 2:] += 1
        return grown, rows[:, 4]


def generated(preset: str, recipe: str, stem: str) -> Trace:
    """Returns the trace `stem` on the generated picture."""
    return _read(FOLDER, preset, recipe, stem, make_picture())


def photo(preset: str, recipe: str, stem: str) -> Trace:
    """Returns the trace `stem` on the photo, or skips the test where that is not at hand."""
    folder = shared_dir("oracle", f"{stem}.npz").parent
    return _read(folder, preset, recipe, stem, cv2.imread(str(folder / "input.png")))


def _read(folder: Path, preset: str, recipe: str, stem: str, bgr: np.ndarray) -> Trace:
    with np.load(folder / f"{stem}.npz") as file:
        arrays = dict(file)
    facts = json.loads((folder / f"{stem}.json").read_text())
    return Trace(preset, recipe, np.ascontiguousarray(bgr[:, :, ::-1]), arrays, facts)


def official_recipe(recipe: str) -> dict:
    """Returns names, shapes and distributions of the tensors of an official checkpoint."""
    return json.loads((FOLDER / f"d2det_{recipe}_names.json").read_text())


def official_state(recipe: str) -> dict[str, Tensor]:
    """Returns the state dict, by official names, that the official run of `recipe` used."""
    spec = official_recipe(recipe)
    return {entry["name"]: _tensor(entry, spec) for entry in spec["params"]}


def _tensor(entry: dict, spec: dict) -> Tensor:
    name, shape = entry["name"], tuple(entry["shape"])
    if entry["kind"] == "count":
        return torch.tensor(0)
    if name in spec["overrides"]:
        return torch.tensor(spec["overrides"][name], dtype=torch.float32).reshape(shape)
    if entry["kind"] == "const":
        return torch.full(shape, entry["loc"])
    key = (zlib.crc32(name.encode()) + spec["seed"]) & 0xFFFFFFFFFFFFFFFF
    raw = np.random.Philox(key=key).random_raw(int(np.prod(shape, dtype=np.int64)))
    uniform = (raw >> np.uint64(40)).astype(np.float64) * 2.0**-24
    values = entry["loc"] + entry["scale"] * np.sqrt(3.0) * (2.0 * uniform - 1.0)
    return torch.from_numpy(values.astype(np.float32).reshape(shape))
