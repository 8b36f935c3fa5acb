"""One precision for all ranks: the one of the weakest device, and then the same to the end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from d2det.models.prepare import Precision
from d2det_platform.train.options import TrainOptions

logger = logging.getLogger(__name__)

_KEY = "precision"
_BF16_CAPABILITY = (8, 0)  # compute capability from which bfloat16 has tensor cores


def fastest_of(device: torch.device) -> Precision:
    """Returns the fastest precision that `device` computes in hardware.

    CPUs differ too much in what they gain, so a CPU gets another precision only on request.
    """
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= _BF16_CAPABILITY else "fp16"


def choose_precision(
    options: TrainOptions, numbers: dict[str, Any], fastest: Sequence[Precision]
) -> Precision:
    """Returns the precision of the run, and keeps an automatic choice in `numbers`.

    A run that began in one precision ends in it, even if its later devices could do another.

    Args:
        options: of the run.
        numbers: those of the checkpoint.
        fastest: `fastest_of` every rank.
    """
    if options.train.precision != "auto":
        return options.train.precision
    if _KEY not in numbers:
        numbers[_KEY] = _weakest(fastest)
        logger.info("precision %s, for devices that do %s", numbers[_KEY], sorted(set(fastest)))
    chosen: Precision = numbers[_KEY]
    return chosen


def _weakest(fastest: Sequence[Precision]) -> Precision:
    if "fp32" in fastest:
        return "fp32"
    return "fp16" if "fp16" in fastest else "bf16"
