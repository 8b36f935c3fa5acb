"""A worker and a node die; `make soak` kills thirty, controllers too."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.platform.train.soak import SmallCluster, disturbed, long_options, undisturbed

pytestmark = pytest.mark.ray


@pytest.fixture
def cluster() -> Iterator[SmallCluster]:
    made = SmallCluster()
    yield made
    made.close()


def test_a_killed_worker_and_a_killed_controller_change_nothing(
    cluster: SmallCluster, tmp_path: Path
) -> None:
    options = long_options(tmp_path, epochs=2, name="undisturbed")
    wanted = undisturbed(options)
    run = options.model_copy(update={"name": "disturbed"})
    result = disturbed(run, cluster, ["worker", "controller"], random.Random(7))
    assert result["losses"] == wanted["losses"]
    assert result["state"] == wanted["state"]
