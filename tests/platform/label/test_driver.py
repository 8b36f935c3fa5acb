"""The guarantee: each picture once, the same bytes whatever happened in between, nothing redone."""

import io
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from d2det_platform.label import work
from d2det_platform.label.commit import commit_shard
from d2det_platform.label.driver import label_run, plan_run
from d2det_platform.label.engine import LocalEngine
from d2det_platform.label.finish import finish
from d2det_platform.label.layout import Run
from d2det_platform.label.options import LabelOptions
from d2det_platform.label.progress import Progress
from d2det_platform.label.schema import read_detections
from d2det_platform.label.units import UnitRef
from d2det_platform.label.work import UnitResult
from d2det_platform.store import RunStore
from tests.platform.label.fake_models import find
from tests.platform.label.lakes import (
    DecodersHere,
    label_bytes,
    label_here,
    make_lake,
    open_labelling,
    options,
    read_labels,
)

SIZES = ((40, 60), (60, 40), (30, 30))


@pytest.fixture
def decoders_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "Decoders", DecodersHere)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lake(tmp_path_factory.mktemp("data") / "lake", 24, SIZES)


@pytest.fixture(scope="module")
def undisturbed(lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    label_here(options(lake, out=out))
    return out


def test_every_picture_has_one_row_with_what_the_model_finds(lake: Path, undisturbed: Path) -> None:
    import cv2

    rows = {row["uri"]: row for row in read_labels(undisturbed)}
    files = sorted(lake.rglob("*.png"))
    assert len(read_labels(undisturbed)) == len(rows) == len(files) == 24
    for path in files:
        row = rows[path.as_uri()]
        expected = find(cv2.imread(str(path))[..., ::-1])
        assert row["name"] == path.relative_to(lake).as_posix()
        assert (row["height"], row["width"]) == expected.size
        assert [d["score"] for d in row["detections"]] == expected.scores.tolist()
        assert np.allclose(
            np.array([d["bbox"] for d in row["detections"]]).reshape(-1, 4), expected.boxes
        )
        assert [d["category_id"] for d in row["detections"]] == expected.labels.tolist()
        assert {(d["label"], d["category_id"]) for d in row["detections"]} <= {
            ("cat", 0),
            ("dog", 1),
        }


def test_rows_are_sorted_and_files_say_where_they_come_from(undisturbed: Path) -> None:
    for file in (undisturbed / "labels").glob("*.parquet"):
        uris = pq.read_table(file).column("uri").to_pylist()
        assert uris == sorted(uris)
        lineage = pq.read_schema(file).metadata
        assert lineage[b"d2det.run"].decode() in file.name
        assert b"d2det.model_digest" in lineage


def test_success_lists_every_file_with_its_digest(undisturbed: Path) -> None:
    import hashlib

    success = json.loads((undisturbed / "_SUCCESS").read_bytes())
    assert success["counts"]["pictures"] == success["counts"]["labelled"] == 24
    for name, entry in success["files"].items():
        data = (undisturbed / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    listed = {name for name in success["files"] if name.startswith("labels/")}
    assert listed == {f"labels/{name}" for name in label_bytes(undisturbed)}


def test_nothing_stays_behind_but_the_plan(undisturbed: Path) -> None:
    left = [p for p in (undisturbed / "_run").rglob("*") if p.is_file() and "plan" not in str(p)]
    assert [p.name for p in left] == ["run.json"]
    assert not list(undisturbed.rglob(".*"))


def test_a_rerun_after_success_predicts_nothing(lake: Path, undisturbed: Path) -> None:
    before = label_bytes(undisturbed)
    assert label_here(options(lake, out=undisturbed)).inferred == 0
    assert label_bytes(undisturbed) == before


class KilledError(Exception):
    """Stands for kill -9: nothing after it is done."""


class FaultyStore(RunStore):
    """Dies at a chosen change of the store, before or after the change."""

    def __init__(self, url: str, dies_at: int, *, after: bool) -> None:
        super().__init__(url)
        self._left, self._after = dies_at, after

    def write(self, name: str, data: bytes) -> None:
        self._step(lambda: RunStore.write(self, name, data))

    def create(self, name: str, data: bytes) -> bool:
        return bool(self._step(lambda: RunStore.create(self, name, data)))

    def upload(self, name: str, source: Path) -> None:
        self._step(lambda: RunStore.upload(self, name, source))

    def remove(self, folder: str) -> None:
        self._step(lambda: RunStore.remove(self, folder))

    def _step(self, change: object) -> object:
        self._left -= 1
        if self._left < 0:
            raise KilledError
        if self._left == 0 and not self._after:
            raise KilledError
        done = change()  # type: ignore[operator]
        if self._left == 0:
            raise KilledError
        return done


class ShuffledEngine(LocalEngine):
    """Does units one by one in a random order, some of them twice."""

    def __init__(self, store: RunStore, seed: int) -> None:
        super().__init__(store)
        self._random = random.Random(seed)

    def predict(self, run: Run, refs: Sequence[UnitRef], attempt: int) -> Iterator[UnitResult]:
        again = list(refs) + self._random.sample(list(refs), len(refs) // 3)
        for ref in self._random.sample(again, len(again)):
            yield from super().predict(run, [ref], attempt)


def drive(store: RunStore, run: Run, engine: LocalEngine) -> None:
    plan = plan_run(store, run, engine)
    label_run(store, run, plan, engine, progress=Progress(plan, out=io.StringIO()))


@pytest.mark.usefixtures("decoders_here")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_dying_at_any_change_of_the_store_changes_no_byte(
    lake: Path, undisturbed: Path, tmp_path: Path, after: bool
) -> None:
    """A driver that dies at its n-th change is followed by one that goes on, for every n."""
    given = options(lake, out=tmp_path / "out", unit_pixels=40_000, shard_pictures=12)
    reference = tmp_path / "reference"
    label_here(given.model_copy(update={"out": str(reference)}))
    _, run = open_labelling(given)
    deaths = 0
    for step in range(1, 100):
        out = tmp_path / f"out-{step}"
        faulty = FaultyStore(str(out), step, after=after)
        try:
            drive(faulty, run, LocalEngine(faulty))
        except KilledError:
            deaths += 1
        else:
            break
        sound = RunStore(str(out))
        drive(sound, run, LocalEngine(sound))
        assert label_bytes(out) == label_bytes(reference)
        assert (out / "coco/results.json").read_bytes() == (
            reference / "coco/results.json"
        ).read_bytes()
        assert (out / "_SUCCESS").exists()
    assert deaths > 15


@pytest.mark.usefixtures("decoders_here")
def test_order_and_repetition_of_units_change_no_byte(lake: Path, tmp_path: Path) -> None:
    given = options(lake, out=tmp_path / "a", unit_pixels=8_000)
    label_here(given)
    for seed in range(2):
        shuffled = given.model_copy(update={"out": str(tmp_path / f"b{seed}")})
        store, run = open_labelling(shuffled)
        drive(store, run, ShuffledEngine(store, seed))
        assert label_bytes(tmp_path / f"b{seed}") == label_bytes(tmp_path / "a")


def test_committing_twice_keeps_what_readers_saw(lake: Path, tmp_path: Path) -> None:
    given = options(lake, out=tmp_path)
    label_here(given)
    store, run = open_labelling(given)
    part = tmp_path / run.layout.part(0)
    before, inode = part.read_bytes(), part.stat().st_ino
    commit_shard(store, run, 0)
    assert (part.read_bytes(), part.stat().st_ino) == (before, inode)


def test_a_resumed_run_predicts_only_what_is_missing(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tmp_path / "count"
    monkeypatch.setenv("D2DET_TEST_COUNT", str(count))
    given = options(lake, out=tmp_path / "out", model="Counting")
    store, run = open_labelling(given)
    engine = LocalEngine(store)
    plan = plan_run(store, run, engine)
    some = [UnitRef(0, 0), UnitRef(1, 0)]
    done = sum(result.pictures for result in engine.predict(run, some, 1))
    outcome = label_here(given)
    assert outcome.inferred == 24 - done
    assert max(Counter(count.read_text().splitlines()).values()) == 1
    assert finish(store, run, plan, given.output, None)["counts"]["pictures"] == 24


def test_another_run_in_the_same_folder_is_refused_by_what_differs(
    lake: Path, undisturbed: Path
) -> None:
    other = options(lake, out=undisturbed, score_threshold=0.4)
    with pytest.raises(ValueError, match=r"differs in score_threshold\. Choose another --out"):
        open_labelling(other)
    elsewhere = options(lake, out=undisturbed, work={"workers": (3, 4)})
    open_labelling(elsewhere)  # how it is spread changes nothing


@pytest.mark.parametrize("inputs", ["empty folder", "only bad files"])
def test_nothing_to_label_gives_valid_empty_outputs(tmp_path: Path, inputs: str) -> None:
    (tmp_path / "lake").mkdir()
    if inputs == "only bad files":
        (tmp_path / "lake/bad.png").write_bytes(b"no picture")
    outcome = label_here(options(tmp_path / "lake", out=tmp_path / "out"))
    count = int(inputs != "empty folder")
    assert outcome.success["counts"]["errors"] == count
    assert len(read_labels(tmp_path / "out")) == count
    assert json.loads((tmp_path / "out/coco/results.json").read_bytes()) == []
    dataset = json.loads((tmp_path / "out/coco/dataset.json").read_bytes())
    assert (dataset["images"], dataset["annotations"]) == ([], [])
    assert pq.read_table(tmp_path / "out/errors.parquet").num_rows == count


def test_detections_come_back_from_their_column(undisturbed: Path) -> None:
    labels = {0: 0, 1: 1}
    for file in (undisturbed / "labels").glob("*.parquet"):
        table = pq.read_table(file).combine_chunks()
        lists = table.column("detections").chunk(0)
        for i, row in enumerate(table.to_pylist()):
            found = read_detections(lists[i].values, (row["height"], row["width"]), labels)
            assert found.scores.tolist() == [d["score"] for d in row["detections"]]
            assert found.boxes.tolist() == [d["bbox"] for d in row["detections"]]


def test_repeated_pictures_are_labelled_once(lake: Path, tmp_path: Path) -> None:
    outcome = label_here(options(lake, lake / "1", out=tmp_path / "out"))
    assert outcome.success["counts"]["pictures"] == 24
    assert outcome.success["counts"]["repeated"] == len(list((lake / "1").iterdir()))


def test_options_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="either --weights or --model"):
        LabelOptions(inputs=("x",), out="y")
    with pytest.raises(ValueError, match="module:callable"):
        LabelOptions(inputs=("x",), out="y", model="module")
