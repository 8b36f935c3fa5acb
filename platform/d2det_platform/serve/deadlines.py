"""How long a request may take: the server's limit, or less where the client asks for less."""

from __future__ import annotations

import math

from starlette.requests import Request

from d2det_platform.serve.limits import Limits
from d2det_platform.serve.problems import Problem

HEADER = "x-request-timeout-seconds"
"""Ray Serve knows this header too, and answers with plain text when its time is over."""
_AHEAD = 0.9
"""Share of the client's time after which we answer, so that the answer is ours."""


def deadline_of(request: Request, limits: Limits) -> float:
    """Returns the deadline of a request on the clock `time.monotonic`.

    Raises:
        Problem: malformed, where the header is no positive number.
    """
    seconds = limits.timeout_s
    if (given := request.headers.get(HEADER)) is not None:
        try:
            wanted = float(given)
        except ValueError:
            wanted = math.nan
        if not wanted > 0:
            raise Problem("malformed", f"{HEADER} must be a positive number of seconds")
        seconds = min(seconds, wanted * _AHEAD)
    return float(request.state.start) + seconds
