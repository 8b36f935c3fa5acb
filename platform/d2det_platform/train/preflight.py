"""Looks at every machine of the cluster before it trains: ops, data, weights, storage.

What is found wrong here costs seconds; found by a worker it would cost the time of all GPUs.
"""

from __future__ import annotations

import hashlib
import platform
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from d2det.data import files
from d2det.data.coco_json import read_coco
from d2det.data.samples import DetectionDataset
from d2det_ops.digest import BuildInfo, build_info, check_same_build
from d2det_platform.store import RunStore
from d2det_platform.train.mlflow import check_mlflow
from d2det_platform.train.options import TrainOptions

PICTURES = 8
"""Pictures that every machine reads and decodes, spread over the data set."""
TIMEOUT_S = 300.0
"""A machine that has not answered by then is reported; installing a runtime_env takes minutes."""
_MARKERS = "preflight"


def check(options: TrainOptions) -> None:
    """Returns only if all machines that could take a worker see what this one sees.

    Raises:
        ValueError: some do not; the message names machines and reasons.
    """
    store, marker = RunStore(options.run_url), uuid.uuid4().hex
    try:
        store.write(f"{_MARKERS}/{marker}", marker.encode())
    except OSError as error:
        raise ValueError(f"the run folder {options.run_url} cannot be written: {error}") from None
    facts = {
        "options": options.model_dump(mode="json"),
        "driver": asdict(build_info()),
        "marker": marker,
        "digests": _digests(options),
    }
    nodes = [node for node in ray.nodes() if node["Alive"] and _can_work(node, options)]
    looks = {
        ray.remote(look)
        .options(
            name="preflight",
            num_cpus=0,
            max_retries=1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        .remote(facts): node
        for node in nodes
    }
    problems = _problems(looks)
    store.remove(_MARKERS)
    if problems:
        raise ValueError(
            "machines are not ready to train:\n" + "\n".join(f"  {text}" for text in problems)
        )


def look(facts: dict[str, Any]) -> list[str]:
    """Returns what is wrong on this machine, a line each; `facts` are those of `check`."""
    options = TrainOptions.model_validate(facts["options"])
    checks = (
        lambda: check_same_build(BuildInfo(**facts["driver"])),
        lambda: _same_files(options, facts["digests"]),
        lambda: _readable_pictures(options),
        lambda: _shared_storage(options, facts["marker"]),
        lambda: check_mlflow(options.mlflow) if options.mlflow is not None else None,
    )
    problems = []
    for one in checks:
        try:
            one()
        except (ValueError, OSError, RuntimeError) as error:
            problems.append(f"{platform.node()}: {error}")
    return problems


def _can_work(node: dict[str, Any], options: TrainOptions) -> bool:
    """Whether a worker would ever be placed on `node`."""
    has, labels = node.get("Resources", {}), node.get("Labels", {})
    cluster = options.cluster
    return bool(
        has.get("CPU", 0) >= cluster.cpus_per_worker
        and (not cluster.gpu or has.get("GPU", 0) >= 1)
        and all(labels.get(key) == value for key, value in cluster.labels.items())
    )


def _problems(looks: dict[Any, dict[str, Any]]) -> list[str]:
    done, late = (
        ray.wait(list(looks), num_returns=len(looks), timeout=TIMEOUT_S) if looks else ([], [])
    )
    problems = {
        f"{looks[ref]['NodeManagerHostname']}: no answer in {TIMEOUT_S:.0f} s" for ref in late
    }
    for ref in done:
        try:
            problems.update(ray.get(ref))
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            problems.add(f"{looks[ref]['NodeManagerHostname']}: {reason}")
    return sorted(problems)


def _digests(options: TrainOptions) -> dict[str, str]:
    """The sha256 of every file that all workers must see alike."""
    return {place: _digest(place) for place in _places(options)}


def _places(options: TrainOptions) -> Sequence[str]:
    data = options.data
    places = [data.train_annotations, data.val_annotations, options.init, options.trunk]
    return [place for place in places if place is not None and place != "imagenet"]


def _digest(place: str) -> str:
    return hashlib.sha256(files.read_bytes(place)).hexdigest()


def _same_files(options: TrainOptions, digests: dict[str, str]) -> None:
    for place in _places(options):
        if _digest(place) != digests[place]:
            raise ValueError(f"{place} differs from the driver's")


def _readable_pictures(options: TrainOptions) -> None:
    data = options.data
    parts = [(data.train_annotations, data.train_images)]
    if data.val_annotations is not None:
        parts.append((data.val_annotations, data.val_images or data.train_images))
    for file, images in parts:
        dataset = DetectionDataset(read_coco(file, masks=False), images)
        for position in range(0, len(dataset), max(len(dataset) // PICTURES, 1)):
            dataset.image(position)


def _shared_storage(options: TrainOptions, marker: str) -> None:
    """Reads what the driver wrote and writes beside it."""
    store = RunStore(options.run_url)
    try:
        seen = store.read(f"{_MARKERS}/{marker}")
    except FileNotFoundError:
        seen = b""
    if seen != marker.encode():
        raise ValueError(
            f"the run folder {options.run_url} is not the driver's: --storage must be shared"
        )
    name = f"{_MARKERS}/{marker}-{platform.node()}"
    store.write(name, b"")
    store.remove(name)
