"""Whole trainings on a small Ray cluster: what they compute must not depend on who computes it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from d2det import load_detector
from d2det.data.synthetic import write_dataset
from d2det_platform.train.command import parse
from d2det_platform.train.run import fit

pytestmark = pytest.mark.ray

SMALL = """
preset: d2det_lite_instance
input: {short_side: 96, long_side: 128}
train: {global_batch: 3, lr: 0.002, schedule: step, warmup_steps: 4, short_sides: null}
model:
  backbone: {fpn_channels: 32}
  roi_sampler: {samples_per_image: 32}
  roi_pooling: {offset_hidden: 32}
  classification: {hidden: 32}
  regression: {channels: 24, num_convs: 2, norm_groups: 6, max_samples_per_image: 8}
  mask: {channels: 16, scoring_hidden: 16}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, object_store_memory=100_000_000)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for split, num_images in (("train", 7), ("val", 2)):
        write_dataset(folder, split=split, num_images=num_images, size=(96, 128))
    return folder


def train(data: Path, storage: Path, name: str, **flags: object) -> list[dict[str, Any]]:
    """Rows of the run's log after training it with `flags`, dots as double underscores."""
    config = storage / "small.yaml"
    config.write_text(SMALL)
    options = {
        "config": config,
        "name": name,
        "storage": storage,
        "data.train-images": data / "train",
        "data.train-annotations": data / "annotations/instances_train.json",
        **{key.replace("__", ".").replace("_", "-"): value for key, value in flags.items()},
    }
    fit(parse([text for key, value in options.items() for text in (f"--{key}", str(value))]))
    return [
        json.loads(line)
        for line in (storage / name / "metrics.jsonl").read_text().split("\n")
        if line
    ]


def losses(rows: list[dict[str, Any]]) -> list[float]:
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))
    return [row["loss"] for row in steps]


def test_two_workers_train_what_one_trains(cluster: None, data: Path, tmp_path: Path) -> None:
    alone = losses(train(data, tmp_path, "alone", train__epochs=2))
    shared = losses(train(data, tmp_path, "shared", train__epochs=2, cluster__workers=2))
    assert len(alone) == 6
    # float32 sums in another order; discrete choices (NMS, matching) did not flip
    assert shared == pytest.approx(alone, rel=1e-3)


def test_a_continued_run_equals_an_undisturbed_one_and_reports(
    cluster: None, data: Path, tmp_path: Path
) -> None:
    val = {
        "data__val_images": data / "val",
        "data__val_annotations": data / "annotations/instances_val.json",
    }
    whole = train(data, tmp_path, "whole", train__epochs=2, **val)
    train(data, tmp_path, "parts", train__epochs=1)
    parts = train(data, tmp_path, "parts", train__epochs=2)
    assert losses(parts) == losses(whole)

    run = tmp_path / "whole"
    evaluation = next(row for row in whole if row.get("event") == "evaluation")
    assert 0 <= evaluation["metrics"]["bbox/AP"] <= 1
    for name in ("training.png", "predictions.png", "analysis/report.html"):
        assert (run / "report" / name).stat().st_size > 1000
    best = load_detector(run / "best.safetensors")
    assert [category.name for category in best.categories][:1] != []
    assert json.loads((run / "config.json").read_text())["train"]["epochs"] == 2


def test_bad_data_is_refused_by_name_before_anything_starts(data: Path, tmp_path: Path) -> None:
    content = json.loads((data / "annotations/instances_train.json").read_text())
    content["annotations"][0]["bbox"][2] = float("nan")
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"annotation {content['annotations'][0]['id']}"):
        train(data, tmp_path, "never", data__train_annotations=broken)
    assert not (tmp_path / "never").exists()
