"""Names of all files of a labelling folder, and the record of which run it holds.

    labels/part-00000-KEY.parquet   coco/ geo/ tasks/   errors.parquet   run_card.*   _SUCCESS
    _run/run.json  lock.json  KEY/plan.json  KEY/plan/SHARD.parquet  KEY/staged/SHARD/UNIT.parquet

KEY is made of the inputs, the weights' digest and the settings. A folder holds one run; what
another would write has other names, and is refused before it is written.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from d2det.config import InputConfig
from d2det.structures import Category
from d2det_platform.label.models import ModelInfo
from d2det_platform.label.options import LabelOptions, run_key
from d2det_platform.store import RunStore

RUN = "_run/run.json"
LOCK = "_run/lock.json"
SUCCESS = "_SUCCESS"
LABELS = "labels"
ERRORS = "errors.parquet"


@dataclass(frozen=True)
class Layout:
    """Names of the files of the run `key`."""

    key: str

    @property
    def plan(self) -> str:
        """The list of shards: there when the plan is complete."""
        return f"_run/{self.key}/plan.json"

    def manifest(self, shard: int, attempt: int = 1) -> str:
        """The pictures of a shard; of later attempts, those that had failed."""
        return f"_run/{self.key}/plan{_suffix(attempt)}/{shard:05d}.parquet"

    def part(self, shard: int) -> str:
        """The labels of a shard."""
        return f"{LABELS}/{self.part_name(shard)}"

    def part_name(self, shard: int) -> str:
        """The name of the labels of a shard in their folder."""
        return f"part-{shard:05d}-{self.key}.parquet"

    def staged_folder(self, shard: int, attempt: int = 1) -> str:
        """Where units of a shard are staged until it is committed."""
        return f"_run/{self.key}/staged{_suffix(attempt)}/{shard:05d}"

    @staticmethod
    def staged_name(unit: int) -> str:
        """The name of a unit's file in the folder of its shard."""
        return f"{unit:05d}.parquet"

    def staged(self, shard: int, unit: int, attempt: int = 1) -> str:
        """What a unit found."""
        return f"{self.staged_folder(shard, attempt)}/{self.staged_name(unit)}"

    def tries(self, shard: int, unit: int, attempt: int = 1) -> str:
        """Which workers that were started anew have taken a unit."""
        return f"_run/{self.key}/tries{_suffix(attempt)}/{shard:05d}-{unit:05d}.json"


def _suffix(attempt: int) -> str:
    return "" if attempt == 1 else f"-attempt-{attempt}"


@dataclass(frozen=True)
class Run:
    """A run of a folder: its options as they were given first, and its model."""

    key: str
    options: LabelOptions
    model: ModelInfo
    identity: dict[str, Any]

    @property
    def layout(self) -> Layout:
        """Returns the names of its files."""
        return Layout(self.key)


def open_run(store: RunStore, options: LabelOptions, model: ModelInfo) -> Run:
    """Returns the run of a folder, having recorded it where there is none.

    Raises:
        ValueError: the folder holds another run; the message says what differs.
    """
    identity = options.identity(model.digest)
    run = Run(run_key(identity), options, model, identity)
    try:
        present = json.loads(store.read(RUN))
    except FileNotFoundError:
        record = {
            "key": run.key,
            "identity": identity,
            "options": options.model_dump(mode="json"),
            "model": {**asdict(model), "input": model.input and model.input.model_dump()},
        }
        store.write(RUN, json.dumps(record, indent=1).encode())
        return run
    if present["key"] != run.key:
        before = present["identity"]
        names = sorted(before.keys() | identity.keys())
        changed = [name for name in names if before.get(name) != identity.get(name)]
        raise ValueError(
            f"{store.url} holds labels of another run ({present['key']}): it differs in "
            f"{', '.join(changed)}. Choose another --out"
        )
    return run


def read_run(store: RunStore) -> Run:
    """Returns the run that a folder holds.

    Raises:
        ValueError: it holds none.
    """
    try:
        present = json.loads(store.read(RUN))
    except FileNotFoundError:
        raise ValueError(f"{store.url} holds no labelling run (no {RUN})") from None
    options = LabelOptions.model_validate({**present["options"], "out": store.url})
    model = present["model"]
    info = ModelInfo(
        digest=model["digest"],
        name=model["name"],
        categories=tuple(Category(**category) for category in model["categories"]),
        input=model["input"] and InputConfig(**model["input"]),
    )
    return Run(present["key"], options, info, present["identity"])
