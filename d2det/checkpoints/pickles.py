"""The one place that reads PyTorch's pickled files, and never the code in them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


def read_pickled_state(path: Path) -> dict[str, Tensor]:
    """Returns the state dict in the `.pth` file `path`, itself or under the key "state_dict".

    A ValueError says in one line why there is none.
    """
    if not path.is_file():
        raise ValueError(f"no file at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle fail in any way there is
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read as a plain PyTorch file: {reason}") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict of tensors")
    return dict(state)
