"""What travels between the processes that talk HTTP and the detectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2det.inference.headers import DecodeReason
from d2det.structures import Detections


@dataclass(frozen=True)
class Job:
    """One picture to look at.

    picture: encoded bytes, whose header has been checked; or (H, W, 3) uint8 RGB.
    size: (height, width) of the upright picture.
    masks: whether masks are wanted.
    budget_s: time left when it was sent; a duration, since clocks of machines differ.
    raw: answer with `Detections`, for merging, instead of a row.
    background: may wait behind everybody else.
    """

    picture: bytes | NDArray[np.uint8]
    size: tuple[int, int]
    masks: bool = True
    budget_s: float = 30.0
    raw: bool = False
    background: bool = False


@dataclass(frozen=True)
class Timing:
    """Milliseconds that a picture spent at a detector, and how many shared its batch."""

    queue_ms: float = 0.0
    decode_ms: float = 0.0
    infer_ms: float = 0.0
    post_ms: float = 0.0
    batch: int = 1


@dataclass(frozen=True)
class Answer:
    """What became of a job: a row, or detections where `raw` was asked for, or a reason.

    row: fields of `results.ImageRow` without the name of the file.
    reason, detail: why the picture could not be read; or "late", "internal".
    """

    row: dict[str, Any] | None = None
    found: Detections | None = None
    reason: DecodeReason | str | None = None
    detail: str = ""
    timing: Timing = Timing()


@dataclass(frozen=True)
class Reply:
    """Answers of a call in the order of its jobs, and the replica that gave them."""

    answers: tuple[Answer, ...]
    replica: str = ""
