from collections.abc import Iterator
from pathlib import Path

import pytest

from d2det.data.synthetic import write_dataset
from tests.platform.train.object_store import ENVIRONMENT, Flaky, flaky_s3


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven training and two validation pictures of 96 x 128."""
    folder = tmp_path_factory.mktemp("scenes")
    for split, num_images in (("train", 7), ("val", 2)):
        write_dataset(folder, split=split, num_images=num_images, size=(96, 128))
    return folder


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Flaky]:
    """A bucket s3://lake that fails a tenth of the calls, for this process and its children."""
    s3fs = pytest.importorskip("s3fs")
    s3fs.S3FileSystem.clear_instance_cache()  # they remember the server of another test
    with flaky_s3() as (address, server):
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        yield server
