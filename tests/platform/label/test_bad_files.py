"""Hostile files and names: one row each, and the sound pictures beside them do not notice."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq

from d2det_platform.label.command import _code
from tests.platform.label.bad_files import bad_contents, write_bad_lake
from tests.platform.label.lakes import label_here, make_lake, options, read_labels

REASONS = {
    "empty",
    "not_image",
    "unsupported_format",
    "truncated",
    "corrupt",
    "too_many_pixels",
    "too_large",
    "zero_size",
    "io_error",
    "timeout",
    "crashed",
}


def test_a_hundred_bad_files_cost_a_row_each(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "lake", 40)
    label_here(options(lake, out=tmp_path / "clean", output={"samples": 3}))
    clean = {row["uri"]: row for row in read_labels(tmp_path / "clean")}
    made = write_bad_lake(lake / "bad")
    given = options(lake, out=tmp_path / "out", output={"samples": 3, "cvat": True})
    outcome = label_here(given)
    rows = read_labels(tmp_path / "out")
    by_uri = {row["uri"]: row for row in rows}
    assert len(rows) == len(by_uri) == 40 + made["bad"] + made["odd"]
    assert {uri: by_uri[uri] for uri in clean} == clean
    errors = {row["name"]: row["error"] for row in rows if row["error"] is not None}
    assert {error["reason"] for error in errors.values()} <= REASONS
    # A few lies no decoder can tell: grey rows at the end, flipped bits that fit.
    undetected = {f"bad/{name}" for name in bad_contents()} - errors.keys()
    assert len(undetected) <= 8, undetected
    assert not any(name.startswith(("bad/cut_", "bad/bomb", "bad/zero")) for name in undetected)
    assert {"bad/fifo.png", "bad/dangling.png", "bad/self.png", "bad/outside.png"} <= errors.keys()
    sound = [row for row in rows if row["error"] is None]
    assert sum(row["name"].startswith("bad/") for row in sound) == made["odd"] + len(undetected)
    table = pq.read_table(tmp_path / "out/errors.parquet").to_pylist()
    assert {row["name"] for row in table} == errors.keys()
    assert _code(outcome, given) == 3
    assert _code(outcome, given.model_copy(update={"max_bad_fraction": 0.9})) == 0
    dataset = json.loads((tmp_path / "out/coco/dataset.json").read_bytes())
    assert len(dataset["images"]) == len(sound)
    page = (tmp_path / "out/run_card.html").read_text()
    assert "<script>" not in page


def test_names_cannot_lead_out_of_the_output_folder(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    write_bad_lake(lake)
    before = {str(path) for path in tmp_path.rglob("*")}
    label_here(options(lake, out=tmp_path / "out"))
    new = {str(path) for path in tmp_path.rglob("*")} - before
    assert all(path.startswith(str(tmp_path / "out")) for path in new)
    assert os.path.islink(lake / "outside.png")  # noqa: PTH114
