"""Object stores that fail one call in ten change nothing; one that always fails stops the run."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from d2det_platform import store
from d2det_platform.label import files
from d2det_platform.label.files import StoreUnavailableError
from tests.platform.label.faulty_proxy import FaultyProxy
from tests.platform.label.lakes import label_bytes, label_here, options, picture

moto_server = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")

STALL_S = 1.5


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    server = moto_server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def proxy(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    # Pauses and patience of a test, not of the internet.
    for module, name, value in (
        (store, "READ_TIMEOUT_S", STALL_S / 2),
        (store, "BACKOFF", replace(store.BACKOFF, first_s=0.01, longest_s=0.05)),
        (files, "BACKOFF", replace(files.BACKOFF, first_s=0.01, longest_s=0.05)),
    ):
        monkeypatch.setattr(module, name, value)
    proxy = FaultyProxy(server, share=0.0, stall_s=STALL_S)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    s3fs.S3FileSystem.clear_instance_cache()
    yield proxy
    proxy.close()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(proxy: FaultyProxy) -> str:
    bucket = f"lake-{time.time_ns()}"
    filesystem = s3fs.S3FileSystem()
    filesystem.mkdir(bucket)
    for number in range(24):
        name = f"{number % 2}/ä {number}%.png"
        filesystem.pipe_file(f"{bucket}/in/{name}", picture(number))
    return bucket


def fetched(bucket: str, out: str, folder: Path) -> dict[str, bytes]:
    s3fs.S3FileSystem().get(f"{bucket}/{out}/labels", str(folder / "labels"), recursive=True)
    return label_bytes(folder)


def test_a_store_that_fails_one_call_in_ten_changes_no_byte(
    proxy: FaultyProxy, bucket: str, tmp_path: Path
) -> None:
    small = {"work": {"decoders": 1}}
    label_here(
        options(f"s3://{bucket}/in", out=Path("clean"), **small).model_copy(
            update={"out": f"s3://{bucket}/clean"}
        )
    )
    clean = fetched(bucket, "clean", tmp_path / "clean")
    proxy.share = 0.1
    label_here(
        options(f"s3://{bucket}/in", out=Path("out"), **small).model_copy(
            update={"out": f"s3://{bucket}/out"}
        )
    )
    proxy.share = 0.0
    assert sum(proxy.faults.values()) > 10, proxy.faults
    assert fetched(bucket, "out", tmp_path / "out") == clean
    assert len(clean) == 3


def test_a_store_that_always_fails_stops_the_run_and_leaves_nothing_torn(
    proxy: FaultyProxy, bucket: str
) -> None:
    proxy.share = 1.0
    given = options(f"s3://{bucket}/in", out=Path("out"))
    with pytest.raises(OSError, match=r"fail|cannot be reached"):
        label_here(given.model_copy(update={"out": f"s3://{bucket}/out"}))
    proxy.share = 0.0
    assert not s3fs.S3FileSystem().exists(f"{bucket}/out/labels")


def test_pictures_out_of_reach_stop_the_run_instead_of_becoming_errors(
    proxy: FaultyProxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from d2det_platform.label import decoders

    given = options(f"s3://{bucket}/in", out=tmp_path)
    before = decoders.read_file

    def unreachable(*args: object, **more: object) -> bytes:
        proxy.share = 1.0
        try:
            return before(*args, **more)  # type: ignore[arg-type]
        finally:
            proxy.share = 0.0

    monkeypatch.setattr(decoders, "read_file", unreachable)
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        label_here(given)
    assert not (tmp_path / "labels").exists()


def test_tables_of_pictures_are_read_from_a_store(
    proxy: FaultyProxy, bucket: str, tmp_path: Path
) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": [picture(i) for i in range(5)]}), sink, row_group_size=2)
    s3fs.S3FileSystem().pipe_file(f"{bucket}/t.parquet", sink.getvalue().to_pybytes())
    outcome = label_here(options(f"s3://{bucket}/t.parquet", out=tmp_path))
    assert outcome.success["counts"]["labelled"] == 5
