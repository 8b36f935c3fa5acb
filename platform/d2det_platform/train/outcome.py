"""How a training ended, as a value that travels from the workers to the driver."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Outcome:
    """The end of one group of workers.

    kind: "finished" is done; "stopped" was asked to stop; "leaving" ended because a node is about
        to go, and the run goes on elsewhere; "failed" met something that trying again cannot mend.
    step: optimiser steps done and saved (for "failed": done).
    message: why, where there is something to say.
    """

    kind: Literal["finished", "stopped", "leaving", "failed"]
    step: int
    message: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields by name."""
        return asdict(self)


class FatalError(Exception):
    """Something is wrong that another try with the same options will meet again."""


class RunFailedError(Exception):
    """The run ended without its result; the message says why, for the person."""
