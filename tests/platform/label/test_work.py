"""A model that fails costs the pictures it fails on; memory is shared out before it is used."""

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from d2det_platform.label.driver import plan_run
from d2det_platform.label.engine import LocalEngine
from d2det_platform.label.layout import Layout
from d2det_platform.label.retry import retry_run
from d2det_platform.label.suspects import Suspects
from d2det_platform.label.units import UnitRef
from d2det_platform.label.work import _Budget
from d2det_platform.store import RunStore
from tests.platform.label.lakes import (
    label_here,
    make_lake,
    open_labelling,
    options,
    picture,
    read_labels,
)


def test_a_model_that_fails_on_a_picture_labels_the_others(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "lake", 8)
    red = np.zeros((40, 60, 3), np.uint8)
    red[..., 2] = 255
    cv2.imwrite(str(lake / "red.png"), red)
    label_here(options(lake, out=tmp_path / "all", model="Choosy"))
    rows = {row["name"]: row for row in read_labels(tmp_path / "all")}
    assert rows.pop("red.png")["error"] == {
        "stage": "predict",
        "reason": "crashed",
        "detail": "RuntimeError: a red picture",
        "attempt": 1,
    }
    (lake / "red.png").unlink()
    label_here(options(lake, out=tmp_path / "others", model="Choosy"))
    assert rows == {row["name"]: row for row in read_labels(tmp_path / "others")}


def test_a_model_that_fails_on_everything_stops_the_run(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "lake", 8)
    with pytest.raises(RuntimeError, match="fails on every picture: nothing works"):
        label_here(options(lake, out=tmp_path / "out", model="Broken", unit_pixels=10**6))
    assert not (tmp_path / "out/_SUCCESS").exists()


def test_pictures_that_failed_are_tried_again(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "lake", 12)
    whole = {p.name: p.read_bytes() for p in lake.glob("*.png")}
    broken = sorted(whole)[:3]
    for name in broken:
        (lake / name).write_bytes(whole[name][:200])
    given = options(lake, out=tmp_path / "out")
    label_here(given)
    for name in broken[:2]:
        (lake / name).write_bytes(whole[name])
    store, run = open_labelling(given)
    engine = LocalEngine(store)
    plan = plan_run(store, run, engine)
    outcome, tried = retry_run(store, run, plan, engine, ())
    assert tried == 3
    assert outcome.inferred == 3
    rows = {row["name"]: row for row in read_labels(tmp_path / "out")}
    assert len(rows) == 12
    assert [n for n, row in rows.items() if row["error"] is not None] == broken[2:]
    assert rows[broken[2]]["error"]["attempt"] == 2
    (lake / broken[2]).write_bytes(whole[broken[2]])
    assert retry_run(store, run, plan, engine, ("timeout",))[1] == 0
    assert retry_run(store, run, plan, engine, ("truncated", "corrupt"))[1] == 1
    label_here(options(lake, out=tmp_path / "clean"))
    assert read_labels(tmp_path / "out") == read_labels(tmp_path / "clean")


def test_pictures_in_memory_never_pass_the_budget() -> None:
    budget, held, peak = _Budget(100), [], []
    lock = threading.Lock()

    def work(count: int) -> None:
        with budget.taken(count):
            with lock:
                held.append(count)
                peak.append(list(held))
            threading.Event().wait(0.002)
            with lock:
                held.remove(count)

    counts = [60, 30, 70, 250, 10, 40, 100, 90, 300, 5] * 3
    threads = [threading.Thread(target=work, args=(count,)) for count in counts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(peak) == len(counts)
    assert all(sum(each) <= 100 or len(each) == 1 for each in peak)


def test_a_large_picture_is_decoded_beside_small_ones(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "lake", 4)
    (lake / "large.png").write_bytes(picture(9, (900, 1300)))
    label_here(options(lake, out=tmp_path / "out", decoded_mb=1))
    assert len(read_labels(tmp_path / "out")) == 5


def test_a_picture_on_which_workers_die_is_given_up_at_the_fifth_try(tmp_path: Path) -> None:
    """Workers that die on the third of four pictures leave a record that convicts it."""

    class DiedError(BaseException):
        pass

    suspects, ref = Suspects(RunStore(str(tmp_path)), Layout("key"), 1), UnitRef(0, 7)
    found: list[list[str]] = []
    for _ in range(8):
        careful, seen = suspects.take(ref), []
        found.append(seen)
        try:
            if not careful:
                raise DiedError
            for place in range(4):
                if suspects.is_condemned(ref, place):
                    seen.append("given up")
                    continue
                before = (tmp_path / Layout("key").tries(0, 7)).read_bytes()
                with suspects.watched(ref, place):
                    record = (tmp_path / Layout("key").tries(0, 7)).read_bytes()
                    assert record != before
                    if place == 2:
                        raise DiedError
                seen.append("done")
        except DiedError:
            if careful:  # a dead process does not tidy up
                (tmp_path / Layout("key").tries(0, 7)).write_bytes(record)
    assert found[:2] == [[], []]
    assert found[2] == found[3] == ["done", "done"]
    assert found[4] == ["done", "done", "given up", "done"]
