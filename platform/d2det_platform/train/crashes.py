"""Errors that come back: a group of workers that ends as those before it did is not tried for ever.

What dies is replaced and goes on; but out of memory, or a mistake in the code, meets the next group
at the same step. An error that comes from a rank's own computing is noted in the run folder by its
step and type; after some groups with the same note the run ends, with the error as its message.
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections import Counter
from dataclasses import dataclass

import torch

from d2det_platform.store import RunStore
from d2det_platform.train.outcome import Outcome
from d2det_platform.train.ranks import Ranks

logger = logging.getLogger(__name__)

FOLDER = "crashes"
TRIES = 3
"""Groups that may end with the same error at the same step."""
_OF_OTHERS = re.compile(r"gloo|nccl|peer|connect|socket|timed? ?out|closed", re.IGNORECASE)
"""In what is said by an error that a rank raises because another one is gone."""
_ADVICE = {
    "OutOfMemoryError": " - lower --cluster.images-per-pass or the size of the input",
    "MemoryError": " - lower --cluster.images-per-pass or --data.loader-threads",
}


@dataclass(frozen=True)
class Crashes:
    """What this group of workers, and those before it since the run was started, ended with."""

    store: RunStore
    ranks: Ranks
    group: int

    @staticmethod
    def of_group(store: RunStore, ranks: Ranks) -> Crashes:
        """Returns the notes of a new group; every rank calls it at the same time."""
        return Crashes(store, ranks, ranks.first_decides(random.getrandbits(60)))

    def repeated(self) -> Outcome | None:
        """Returns on every rank the end of the run, if enough groups before this one ended alike.

        Raises:
            FatalError: the run folder cannot be read.
        """
        read = self._read_repeated if self.ranks.is_first else lambda: None
        found: Outcome | None = self.ranks.gather(self.ranks.together(read))[0]
        return found

    def note(self, step: int, error: Exception) -> None:
        """Notes what this rank raised after `step`, unless it may come from outside."""
        if not _is_own(error):
            return
        kind, lines = type(error).__name__, str(error).splitlines()
        note = {"step": step, "kind": kind, "text": lines[0][:300] if lines else ""}
        try:
            self.store.write(f"{FOLDER}/{step}-{kind}-{self.group}", json.dumps(note).encode())
        except OSError as problem:
            logger.warning("cannot note that the run crashed: %s", problem)

    def _read_repeated(self) -> Outcome | None:
        names = self.store.names(FOLDER)
        counts = Counter(_kind_of(name) for name in names)
        alike = [name for name in names if counts[_kind_of(name)] >= TRIES]
        if not alike:
            return None
        note = json.loads(self.store.read(f"{FOLDER}/{alike[0]}"))
        step, kind, text = note["step"], note["kind"], note["text"]
        said = f"{kind}: {text}" if text else kind
        return Outcome(
            "failed",
            step,
            f"{TRIES} groups of workers ended alike after step {step}, with {said}"
            f"{_ADVICE.get(kind, '')}",
        )


def clear(store: RunStore) -> None:
    """Forgets them: whoever starts the run again may have mended it."""
    store.remove(FOLDER)


def _kind_of(name: str) -> str:
    """Step and type in the name of a note, which ends with the group."""
    return name.rpartition("-")[0]


def _is_own(error: Exception) -> bool:
    """Whether an error is of this rank's computing: not of storage, of Ray, or of another's end."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and _OF_OTHERS.search(str(error)):
        return False
    return not isinstance(error, OSError) and not type(error).__module__.startswith("ray")
