"""Remote calls, tried again on errors that pass, with growing pauses."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Backoff:
    """How often a call is tried, and how long the pauses between are: doubled, half as much or
    half more by chance, so that many workers do not come back together."""

    attempts: int
    first_s: float
    longest_s: float


class ExhaustedError(OSError):
    """A call failed in all attempts; reason: the last error, with its type."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)  # alone, so that the error survives the way between processes
        self.reason = reason


def repeated(
    what: str, call: Callable[[], T], backoff: Backoff, *, log_level: int = logging.WARNING
) -> T:
    """Returns what a remote call returns; each failure but the last is logged.

    Raises:
        FileNotFoundError, PermissionError: at once, as the store says.
        ExhaustedError: the last attempt failed too.
    """
    for attempt in range(1, backoff.attempts + 1):
        try:
            return call()
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # clients raise what they like: aiohttp's, botocore's errors
            reason = f"{type(error).__name__}: {error}".strip(": ")
            if attempt == backoff.attempts:
                raise ExhaustedError(f"{what} failed: {reason}", reason) from error
            pause = min(backoff.first_s * 2 ** (attempt - 1), backoff.longest_s)
            pause *= random.uniform(0.5, 1.5)
            logger.log(
                log_level, "%s failed (%s); attempt %d in %.1f s", what, error, attempt + 1, pause
            )
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")
