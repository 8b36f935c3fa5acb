"""Checkpoints that are whole, verified before use, and replaced by the previous one if damaged.

A checkpoint is a folder `checkpoints/step-000000123/` of files plus `manifest.json`, written last:
a folder without a valid manifest is not a checkpoint. The manifest holds the size and sha256 of
every file and of itself, because neither torch nor safetensors notices flipped bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from d2det_platform.store import RunStore

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
MANIFEST = "manifest.json"


class DamagedCheckpointError(ValueError):
    """A checkpoint does not match its manifest."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory: the step it was taken after, and its files."""

    step: int
    files: Mapping[str, bytes]

    @property
    def digest(self) -> str:
        """The sha256 of its manifest, and so of everything in it."""
        return hashlib.sha256(_manifest(self)).hexdigest()


def save(store: RunStore, checkpoint: Checkpoint, *, keep: int) -> None:
    """Writes `checkpoint`, then removes unfinished folders and all but the newest `keep`.

    Raises:
        OSError: the storage did not take it. What it took is removed, if it lets us, so that a full
            disk has room again; the checkpoints before are as they were.
    """
    folder = _folder(checkpoint.step)
    store.remove(f"{folder}/{MANIFEST}")  # a rewritten step is no checkpoint until it is whole
    try:
        for name, data in checkpoint.files.items():
            store.write(f"{folder}/{name}", data)
        store.write(f"{folder}/{MANIFEST}", _manifest(checkpoint))
    except OSError:
        with contextlib.suppress(OSError):
            store.remove(folder)
        raise
    finished = [step for step in _steps(store) if MANIFEST in store.names(_folder(step))]
    for old in set(_steps(store)) - set(finished[:keep]):
        store.remove(_folder(old))


def load(store: RunStore, step: int) -> Checkpoint:
    """Returns the checkpoint of `step`.

    Raises:
        DamagedCheckpointError: a file or the manifest is missing, changed or of another step.
    """
    folder = _folder(step)
    try:
        manifest = json.loads(store.read(f"{folder}/{MANIFEST}"))
        files = {name: store.read(f"{folder}/{name}") for name in manifest["files"]}
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{folder}: {error} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{folder}/{MANIFEST} is not a manifest: {error}") from error
    checkpoint = Checkpoint(step, files)
    if store.read(f"{folder}/{MANIFEST}") != _manifest(checkpoint):
        raise DamagedCheckpointError(f"{folder} does not match its manifest")
    return checkpoint


def load_if_sound(store: RunStore, step: int) -> Checkpoint | None:
    """Returns the checkpoint of `step`, or None if it is damaged, which the log then says."""
    try:
        return load(store, step)
    except DamagedCheckpointError as error:
        logger.error("%s; falling back to the checkpoint before it", error)
        return None


def load_latest(store: RunStore, before: int | None = None) -> Checkpoint | None:
    """Returns the newest checkpoint that is sound, of a step below `before`, or None."""
    steps = (step for step in _steps(store) if before is None or step < before)
    return next(filter(None, (load_if_sound(store, step) for step in steps)), None)


def _folder(step: int) -> str:
    return f"{FOLDER}/step-{step:09d}"


def _steps(store: RunStore) -> list[int]:
    """Steps that have a folder, newest first."""
    names = (name.removeprefix("step-") for name in store.names(FOLDER))
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _manifest(checkpoint: Checkpoint) -> bytes:
    """The only manifest these files can have, so comparing bytes verifies everything at once."""
    content = {
        "step": checkpoint.step,
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in sorted(checkpoint.files.items())
        },
    }
    return json.dumps(content, indent=1).encode()
