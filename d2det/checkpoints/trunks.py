"""Loads ImageNet weights into a trunk: from a file, or from torchvision where it can be reached.

Files are state dicts with torchvision's names (`.pth`, read without unpickling code, or
`.safetensors`); a classifier in them is not used.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from d2det.checkpoints.names import require_equal
from d2det.checkpoints.pickles import read_pickled_state
from d2det.models.detector import D2Det

logger = logging.getLogger(__name__)

IMAGENET = "imagenet"
"""In place of a file: fetch torchvision's weights, those the official configurations start from."""

_CLASSIFIERS = ("fc.", "classifier.")
_OFFSET_PREDICTORS = ".conv2.offset."  # of DCNv2: they start at zero, so a plain trunk lacks them


def load_trunk(model: D2Det, source: Path | str) -> None:
    """Copies ImageNet weights from the file `source`, or `IMAGENET`, into the trunk of `model`.

    A ValueError says in one line why that is not possible.
    """
    kind = model.config.backbone.kind
    state = _fetch(kind) if str(source) == IMAGENET else _read(Path(source))
    found = {name: t for name, t in state.items() if not name.startswith(_CLASSIFIERS)}
    trunk = model.backbone.state_dict()
    wanted = {name: t for name, t in trunk.items() if _OFFSET_PREDICTORS not in name}
    require_equal(found, wanted, f"{source} is not a {kind} trunk")
    model.backbone.load_state_dict(found, strict=False)
    logger.info("trunk %s: %d tensors from %s", kind, len(found), source)


def _read(path: Path) -> Mapping[str, Tensor]:
    if path.suffix != ".safetensors":
        return read_pickled_state(path)
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as trunk weights: {error}") from None


def _fetch(kind: str) -> Mapping[str, Tensor]:
    weights = torchvision.models.get_model_weights(kind)["IMAGENET1K_V1"]
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise ValueError(
            f"torchvision's {kind} weights cannot be fetched ({error}); give a file instead"
        ) from None
    return state
