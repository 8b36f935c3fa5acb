"""On a real cluster: the same bytes as in one process, also when workers and drivers are killed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import ray

from d2det_platform import cli
from d2det_platform.cluster import connect
from tests.platform.label.lakes import (
    MODELS,
    label_bytes,
    label_here,
    make_lake,
    options,
    read_labels,
)

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    connect(num_cpus=2, object_store_bytes=100_000_000, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lake = make_lake(tmp_path_factory.mktemp("data") / "lake", 60, ((40, 60), (50, 30)))
    (lake / "bad.png").write_bytes(b"bad")
    return lake


def label(lake: Path, out: Path, *more: str, workers: int = 1) -> int:
    flags = {
        "--model": f"{MODELS}:Plain",
        "--out": str(out),
        "--unit-pixels": "10000",
        "--shard-pictures": "25",
        "--work.cpus-per-worker": "1",
        "--work.decoders": "1",
        "--output.samples": "0",
    }
    given = [text for pair in flags.items() for text in pair]
    many = ["--work.workers", str(workers), str(workers)]
    return cli.main(["label", str(lake), *given, *many, *more])


@pytest.mark.usefixtures("cluster")
def test_one_and_two_workers_give_the_bytes_of_one_process(
    lake: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    label_here(options(lake, out=tmp_path / "here", shard_pictures=25))
    for workers in (1, 2):
        assert label(lake, tmp_path / f"{workers}", workers=workers) == 0
        assert label_bytes(tmp_path / f"{workers}") == label_bytes(tmp_path / "here")
    assert "60 of 61 pictures labelled" in capfd.readouterr().err
    assert label(lake, tmp_path / "2", workers=2) == 0
    assert "nothing was predicted" in capfd.readouterr().err
    assert label(lake, tmp_path / "2", "--max-bad-fraction", "0.001") == 3


@pytest.mark.usefixtures("cluster")
def test_a_model_that_cannot_work_ends_the_run_with_its_reason(
    lake: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert label(lake, tmp_path, "--model", f"{MODELS}:Broken", "--unit-pixels", "1000000") == 1
    printed = capfd.readouterr().err
    assert "failed: the model fails on every picture: nothing works" in printed
    assert "the same command goes on" in printed


@pytest.mark.usefixtures("cluster")
def test_a_dry_run_prints_the_plan_that_is_then_followed(
    lake: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert label(lake, tmp_path, "--dry-run") == 0
    printed = capfd.readouterr().out
    assert "not_image" in printed
    assert "one worker of this machine" in printed
    plan = next((tmp_path / "_run").glob("*/plan.json"))
    before = plan.read_bytes(), plan.stat().st_mtime_ns
    assert label(lake, tmp_path) == 0
    assert (plan.read_bytes(), plan.stat().st_mtime_ns) == before


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_picture_that_kills_the_model_is_found_and_given_up(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "lake", 12)
    red = np.zeros((40, 60, 3), np.uint8)
    red[..., 2] = 255
    cv2.imwrite(str(lake / "red.png"), red)
    assert label(lake, tmp_path / "out", "--model", f"{MODELS}:Deadly") == 0
    rows = {row["name"]: row for row in read_labels(tmp_path / "out")}
    assert "died on it" in rows.pop("red.png")["error"]["detail"]
    assert len(rows) == 12
    assert all(row["error"] is None for row in rows.values())


@pytest.mark.slow
def test_kills_change_nothing() -> None:
    """One round of the soak: a worker and a driver die. `make soak` does many."""
    command = [sys.executable, "-m", "tests.platform.label.soak"]
    flags = ["--rounds", "1", "--kills", "2", "--pictures", "400", "--seed", "0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    # In a process of its own: this one may be connected to another cluster.
    done = subprocess.run(
        [*command, *flags], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 rounds, 2 kills: lost 0, doubled 0, changed files 0" in done.stdout
