"""Processes die at random moments; `make soak` kills thirty, Ray's own among them."""

import random
import time
from pathlib import Path

import pytest

from tests.platform.train import plain_kills
from tests.platform.train.soak import SmallCluster, disturbed, long_options, undisturbed


def test_two_killed_processes_change_nothing(tmp_path: Path) -> None:
    options = long_options(tmp_path, epochs=2, name="undisturbed")
    started = time.monotonic()
    wanted = plain_kills.undisturbed(options, tmp_path)
    longest_s = (time.monotonic() - started) / 2  # well before the end, on any machine
    run = options.model_copy(update={"name": "disturbed"})
    result, hits = plain_kills.disturbed(run, tmp_path, 2, random.Random(7), longest_s=longest_s)
    assert hits >= 1
    assert result["losses"] == wanted["losses"]
    assert result["state"] == wanted["state"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_worker_and_a_killed_controller_of_ray_change_nothing(tmp_path: Path) -> None:
    cluster = SmallCluster()
    try:
        options = long_options(tmp_path, epochs=2, name="undisturbed")
        wanted = undisturbed(options)
        run = options.model_copy(update={"name": "disturbed"})
        result, killed = disturbed(run, cluster, ["worker", "controller"], random.Random(7))
    finally:
        cluster.close()
    assert killed
    assert result["losses"] == wanted["losses"]
    assert result["state"] == wanted["state"]
