"""Whole trainings on a small Ray cluster: what they compute must not depend on who computes it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from d2det import load_detector
from d2det_platform.cluster import connect
from d2det_platform.train.run import fit
from tests.platform.train.group import rows_of, small_options

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    connect(num_cpus=2, object_store_bytes=100_000_000)
    yield
    ray.shutdown()


def train(scenes: Path, storage: Path, name: str, **flags: object) -> list[dict[str, Any]]:
    """Rows of the run's log after training it with `flags`, dots as double underscores."""
    options = small_options(
        storage,
        name=name,
        **{
            "data__train_images": scenes / "train",
            "data__train_annotations": scenes / "annotations/instances_train.json",
            **flags,
        },
    )
    fit(options)
    return rows_of(options)


def losses(rows: list[dict[str, Any]]) -> list[float]:
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))
    return [row["loss"] for row in steps]


def test_two_workers_train_what_one_trains(cluster: None, scenes: Path, tmp_path: Path) -> None:
    # Three steps of SGD: later, and sooner where Adam makes whole steps of rounding, the NMS or the
    # matching of some box flips in float32. test_exact.py compares longer trainings in float64.
    plain = {"train__epochs": 1, "train__optimizer": "sgd"}
    alone = losses(train(scenes, tmp_path, "alone", **plain))
    shared = losses(train(scenes, tmp_path, "shared", **plain, cluster__workers=2))
    assert len(alone) == 3
    assert shared == pytest.approx(alone, rel=1e-3)


def test_paths_are_those_of_the_person(
    cluster: None, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray Train moves its workers to a folder of the run, where a relative path finds nothing.
    monkeypatch.chdir(tmp_path)
    rows = train(Path(os.path.relpath(scenes)), Path(), "here", train__epochs=1)
    assert len(losses(rows)) == 3
    assert (tmp_path / "runs/here/last.safetensors").exists()


def test_a_continued_run_equals_an_undisturbed_one_and_reports(
    cluster: None, scenes: Path, tmp_path: Path
) -> None:
    val = {
        "data__val_images": scenes / "val",
        "data__val_annotations": scenes / "annotations/instances_val.json",
    }
    whole = train(scenes, tmp_path, "whole", train__epochs=2, **val)
    train(scenes, tmp_path, "parts", train__epochs=1)
    parts = train(scenes, tmp_path, "parts", train__epochs=2)
    assert losses(parts) == losses(whole)

    run = tmp_path / "runs" / "whole"
    evaluation = next(row for row in whole if row.get("event") == "evaluation")
    assert 0 <= evaluation["metrics"]["bbox/AP"] <= 1
    for name in ("training.png", "predictions.png", "analysis/report.html"):
        assert (run / "report" / name).stat().st_size > 1000
    best = load_detector(run / "best.safetensors")
    assert [category.name for category in best.categories][:1] != []
    assert json.loads((tmp_path / "runs/whole/config.json").read_text())["train"]["epochs"] == 2


def test_bad_data_is_refused_by_name_before_anything_starts(scenes: Path, tmp_path: Path) -> None:
    content = json.loads((scenes / "annotations/instances_train.json").read_text())
    content["annotations"][0]["bbox"][2] = float("nan")
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"annotation {content['annotations'][0]['id']}"):
        train(scenes, tmp_path, "never", data__train_annotations=broken)
    assert not (tmp_path / "runs" / "never").exists()
