"""How many rows the layers over RoIs compute, which is a few more than there are RoIs on a GPU.

cuDNN and cuBLAS choose and prepare a kernel when a layer first meets a shape, while the GPU waits.
There are as many RoIs as a batch happens to have, so every layer would meet a new shape at every
step. Rounded up to 16 counts an octave, a few shapes come again and again, for 2 % more rows on
average.

Letters: R rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rounded_up(count: int, device: torch.device) -> int:
    """Returns the number of rows to compute where `count` are needed: on a CPU, no more."""
    if device.type != "cuda":
        return count
    step = 1 << max(0, count.bit_length() - 5)
    return -(-count // step) * step


def with_spare_rows(x: Tensor) -> Tensor:
    """Returns x (R, ...) with zeros behind its rows, up to the rounded number."""
    spare = rounded_up(len(x), x.device) - len(x)
    return F.pad(x, (0, 0) * (x.ndim - 1) + (0, spare)) if spare else x
