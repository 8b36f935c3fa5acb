"""Pictures can harm nothing but their own row."""

import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from d2det.inference.decode import DecodeError, DecodeLimits, decode_image
from d2det_platform.label import decoders as module
from d2det_platform.label import uris
from d2det_platform.label.decoders import Decoders, Request
from d2det_platform.label.files import FileState, file_state
from tests.platform.label.lakes import picture

TIMEOUT_S = 1.5


@pytest.fixture
def rogues(monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoders]:
    monkeypatch.setattr(module, "_MODULE", "tests.platform.label.rogue_decoder")
    with Decoders(1, timeout_s=TIMEOUT_S) as decoders:
        yield decoders


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    with Decoders(2, limits=DecodeLimits(max_pixels=1_000_000)) as decoders:
        yield decoders


def request(path: Path) -> Request:
    return Request(uris.of_path(path))


def test_a_picture_that_harms_its_decoder_is_the_only_one_lost(
    rogues: Decoders, tmp_path: Path
) -> None:
    marks = ["", "SEGFAULT", "", "HANG", "PRINT", "BLOAT", ""]
    for i, mark in enumerate(marks):
        (tmp_path / f"{i}.png").write_bytes(picture(i) + mark.encode())
    contents = list(rogues.read([request(tmp_path / f"{i}.png") for i in range(len(marks))]))
    reasons = [c.reason if isinstance(c, DecodeError) else "" for c in contents]
    assert reasons == ["", "crashed", "", "timeout", "", "too_many_pixels", ""]
    assert "SIGSEGV" in str(contents[1])
    for i in (0, 2, 4, 6):
        assert (contents[i] == decode_image(picture(i))).all()


@pytest.mark.parametrize("size", [(1, 1), (37, 61), (900, 1000)])
def test_pixels_are_those_of_the_usual_decoder(
    decoders: Decoders, tmp_path: Path, size: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for suffix in (".jpg", ".png", ".tif", ".webp", ".bmp"):
        data = cv2.imencode(suffix, image)[1].tobytes()
        (tmp_path / f"a{suffix}").write_bytes(data)
        (content,) = decoders.read([request(tmp_path / f"a{suffix}")])
        assert (content == decode_image(data)).all()


def test_sizes_may_grow_and_shrink_from_one_to_the_next(decoders: Decoders, tmp_path: Path) -> None:
    sizes = [(10, 10), (900, 900), (3, 7), (500, 1000), (1, 1)]
    for i, size in enumerate(sizes):
        (tmp_path / f"{i}.png").write_bytes(picture(i, size))
    contents = decoders.read([request(tmp_path / f"{i}.png") for i in range(len(sizes))])
    for i, (size, content) in enumerate(zip(sizes, contents, strict=True)):
        assert (content == decode_image(picture(i, size))).all()


def test_limits_hold_in_the_decoder_process(decoders: Decoders, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(0, (1001, 1000)))
    (content,) = decoders.read([request(tmp_path / "a.png")])
    assert isinstance(content, DecodeError)
    assert content.reason == "too_many_pixels"


def test_a_file_that_changed_since_the_plan_is_an_error(decoders: Decoders, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture(0))
    then = file_state(uris.of_path(path))
    time.sleep(0.01)
    path.write_bytes(picture(1))
    now = file_state(uris.of_path(path))
    changed, same = decoders.read(
        [Request(uris.of_path(path), state=state) for state in (then, now)]
    )
    assert isinstance(changed, DecodeError)
    assert changed.detail == "changed since it was planned"
    assert isinstance(same, np.ndarray)
    path.unlink()
    (gone,) = decoders.read([Request(uris.of_path(path), state=FileState(1, "1"))])
    assert isinstance(gone, DecodeError)
    assert gone.reason == "io_error"


def test_rows_of_tables_are_read_in_any_order(decoders: Decoders, tmp_path: Path) -> None:
    rows = [picture(i) for i in range(7)]
    cells = [{"bytes": row, "path": None} for row in rows]
    pq.write_table(pa.table({"image": cells}), tmp_path / "t.parquet", row_group_size=3)
    base = uris.of_path(tmp_path / "t.parquet")
    order = [6, 0, 3, 2, 5, 9]
    contents = list(decoders.read([Request(uris.with_row(base, row)) for row in order]))
    for row, content in zip(order[:-1], contents, strict=False):
        assert (content == decode_image(rows[row])).all()
    assert isinstance(contents[-1], DecodeError)
