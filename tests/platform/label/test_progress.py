"""The line says what is done, how fast, what failed and how long it takes."""

import io

import pytest

from d2det_platform.label import progress as module
from d2det_platform.label.plan import Plan, Shard
from d2det_platform.label.progress import Progress
from d2det_platform.label.work import UnitResult

SHARD = Shard(
    index=0, pictures=110, units=10, windows=100, cost=1000, bytes=1, refused=10, digest=""
)


def unit(number: int) -> UnitResult:
    return UnitResult(
        0, number, True, pictures=10, windows=10, errors=1, megapixels=20.0, seconds=1.0
    )


def test_speed_and_time_left_follow_the_last_units(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    progress = Progress(Plan((SHARD,)), out=out)
    assert progress.line() == "10/110 pictures, 10 errors"
    for number in range(3):
        clock[0] += 5
        progress.add(unit(number))
    assert progress.line() == ("40/110 pictures, 2.0 pictures/s, 4.0 MP/s, 13 errors, 0:00:35 left")
    progress.close()
    assert out.getvalue().count("\n") == 3  # one a ten seconds, and the last


def test_shards_of_an_earlier_run_count_as_done() -> None:
    progress = Progress(Plan((SHARD,)), out=io.StringIO())
    progress.skip(SHARD, units=5)
    assert progress.line() == "60/110 pictures, 10 errors"
    progress.skip(SHARD, units=5)
    assert progress.line() == "110/110 pictures, 10 errors"
