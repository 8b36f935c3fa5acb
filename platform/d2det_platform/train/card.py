"""run.json: what was trained on what, from which source, on which machines, and how it ended."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from d2det import __version__
from d2det.data import files
from d2det_platform.store import RunStore
from d2det_platform.train.options import TrainOptions

FILE = "run.json"
_DIGESTS, _GROUPS, _OUTCOMES = "annotations_sha256", "groups", "outcomes"


def open_card(options: TrainOptions) -> None:
    """Writes or continues the card of the run; the driver calls it before the workers start.

    Raises:
        ValueError: the run of this name was begun with other annotations.
    """
    store = RunStore(options.run_url)
    card = read_card(store)
    digests = annotation_digests(options)
    known = card.get(_DIGESTS, {})
    odd = sorted(part for part in known.keys() & digests if known[part] != digests[part])
    if odd:
        raise ValueError(
            f"the {' and '.join(odd)} annotations are not those the run {options.run_url} began "
            "with: use another --name, or the annotations it was started with"
        )
    card.update(
        {
            "config": options.model_dump(mode="json"),
            "command": sys.argv,
            _DIGESTS: known | digests,
            "source": source_state(Path(__file__).parent),
            "versions": {
                "d2det": __version__,
                "torch": str(torch.__version__),
                "python": sys.version.split()[0],
            },
        }
    )
    card.setdefault("started_at", _now())
    _write(store, card)


def add_group(
    store: RunStore, *, step: int, devices: list[dict[str, Any]], facts: dict[str, Any]
) -> None:
    """Adds a group of workers that goes on from `step`: its device table and what it decided."""
    card = read_card(store)
    group = {"step": step, "at": _now(), **facts, "devices": devices}
    card.setdefault(_GROUPS, []).append(group)
    _write(store, card)


def add_outcome(store: RunStore, outcome: dict[str, Any]) -> None:
    """Adds how a group of workers ended."""
    card = read_card(store)
    card.setdefault(_OUTCOMES, []).append({"at": _now(), **outcome})
    _write(store, card)


def read_card(store: RunStore) -> dict[str, Any]:
    """Returns the card of the run, empty if there is none."""
    try:
        card: dict[str, Any] = json.loads(store.read(FILE))
    except FileNotFoundError:
        return {}
    return card


def annotation_digests(options: TrainOptions) -> dict[str, str]:
    """Returns the sha256 of the training and validation annotations, by part."""
    data = options.data
    parts = {"training": data.train_annotations, "validation": data.val_annotations}
    return {
        part: hashlib.sha256(files.read_bytes(place)).hexdigest()
        for part, place in parts.items()
        if place is not None
    }


def source_state(folder: Path) -> dict[str, Any]:
    """Returns commit and cleanness of the git checkout around `folder`; empty without one."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    return {"commit": commit, "has_changes": bool(_git(folder, "status", "--porcelain"))}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _write(store: RunStore, card: dict[str, Any]) -> None:
    store.write(FILE, json.dumps(card, indent=1).encode())


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
