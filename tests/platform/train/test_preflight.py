"""What a machine that is not ready to train is told; `look` runs on every machine of a cluster."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from d2det_ops.digest import build_info
from d2det_platform.store import RunStore
from d2det_platform.train import preflight
from d2det_platform.train.options import TrainOptions
from tests.platform.train.group import scene_options


@pytest.fixture
def options(scenes: Path, tmp_path: Path) -> TrainOptions:
    shutil.copytree(scenes, tmp_path / "scenes")
    return scene_options(tmp_path / "scenes", tmp_path, val=True)


def facts_of(options: TrainOptions) -> dict[str, Any]:
    """What the driver tells the machines, after it wrote its marker."""
    RunStore(options.run_url).write("preflight/mark", b"mark")
    return {
        "options": options.model_dump(mode="json"),
        "driver": asdict(build_info()),
        "marker": "mark",
        "digests": preflight._digests(options),
    }


def test_a_machine_that_sees_everything_is_ready(options: TrainOptions) -> None:
    assert preflight.look(facts_of(options)) == []


def test_another_build_of_the_ops_is_named(options: TrainOptions) -> None:
    facts = facts_of(options)
    facts["driver"] = asdict(replace(build_info(), library="other"))
    (problem,) = preflight.look(facts)
    assert "runs other ops than driver" in problem
    assert "make wheel" in problem


def test_missing_and_different_annotations_are_named(options: TrainOptions) -> None:
    facts = facts_of(options)
    Path(options.data.train_annotations).write_text("{}")
    problems = "\n".join(preflight.look(facts))
    assert f"{options.data.train_annotations} differs from the driver's" in problems
    Path(options.data.train_annotations).unlink()
    assert options.data.train_annotations in "\n".join(preflight.look(facts))


def test_missing_pictures_are_named(options: TrainOptions) -> None:
    facts = facts_of(options)
    first = sorted(Path(options.data.train_images).iterdir())[0]
    first.unlink()
    assert first.name in "\n".join(preflight.look(facts))


def test_storage_that_is_not_shared_is_named(options: TrainOptions) -> None:
    facts = facts_of(options) | {"marker": "of another machine"}
    (problem,) = preflight.look(facts)
    assert "--storage must be shared" in problem


@pytest.mark.parametrize(
    ("resources", "labels", "wanted", "expected"),
    [
        ({"CPU": 4.0}, {}, {}, True),
        ({"CPU": 1.0}, {}, {"cpus_per_worker": 2}, False),
        ({}, {}, {}, False),
        ({"CPU": 4.0}, {}, {"gpu": True}, False),
        ({"CPU": 4.0, "GPU": 1.0}, {}, {"gpu": True}, True),
        ({"CPU": 4.0}, {"pool": "a"}, {"labels": {"pool": "a"}}, True),
        ({"CPU": 4.0}, {"pool": "b"}, {"labels": {"pool": "a"}}, False),
    ],
    ids=["fits", "too small", "empty head", "no GPU", "GPU", "label", "other label"],
)
def test_only_machines_that_could_take_a_worker_are_looked_at(
    options: TrainOptions, resources: dict, labels: dict, wanted: dict, expected: bool
) -> None:
    chosen = options.model_copy(update={"cluster": options.cluster.model_copy(update=wanted)})
    node = {"Resources": resources, "Labels": labels}
    assert preflight._can_work(node, chosen) is expected
