"""kill -9 of real processes at random moments, without Ray: cheap enough to do often.

    D2DET_KILL_ROUNDS=20 D2DET_KILL_PICTURES=2000 pytest -s tests/platform/label/test_kills.py

`soak.py` kills workers, drivers and nodes of a cluster.
"""

import multiprocessing
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.platform.label.lakes import (
    DecodersHere,
    label_bytes,
    label_here,
    make_lake,
    options,
    read_labels,
)
from tests.platform.label.soak import Reader

ROUNDS = int(os.environ.get("D2DET_KILL_ROUNDS", "2"))
PICTURES = int(os.environ.get("D2DET_KILL_PICTURES", "150"))
KILLS, UNIT, CALLS = 3, 8, 2
PIXELS = 40 * 60


def label_in_child(lake: Path, out: Path, count: Path) -> None:
    """Labels in a process that may be killed."""
    from d2det_platform.label import work

    work.Decoders = DecodersHere  # type: ignore[misc, assignment]
    os.environ.update(D2DET_TEST_COUNT=str(count), D2DET_TEST_SLEEP="0.002")
    label_here(
        options(lake, out=out, model="Counting", unit_pixels=UNIT * PIXELS, shard_pictures=4 * UNIT)
    )


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.platform.label.lakes"])
    return context


def test_kills_at_random_moments_change_no_byte(
    processes: multiprocessing.context.ForkServerContext, tmp_path: Path
) -> None:
    lake = make_lake(tmp_path / "lake", PICTURES)
    for name in ("warm-up", "clean"):  # the first also waits for imports
        clean = processes.Process(
            target=label_in_child, args=(lake, tmp_path / name, tmp_path / f"count-{name}")
        )
        start = time.monotonic()
        clean.start()
        clean.join()
        lasts = time.monotonic() - start
        assert clean.exitcode == 0
    expected = label_bytes(tmp_path / "clean")
    assert label_bytes(tmp_path / "warm-up") == expected
    total, reads, redone_most = 0, 0, 0
    for seed in range(ROUNDS):
        out, count, chance = tmp_path / f"{seed}", tmp_path / f"count-{seed}", random.Random(seed)
        reader = Reader(out)
        reader.start()
        kills = 0
        while True:
            process = processes.Process(target=label_in_child, args=(lake, out, count))
            process.start()
            moment = chance.uniform(0.05, 0.6) * lasts if kills < KILLS else None
            process.join(moment)
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills += 1
        reader.stop()
        assert process.exitcode == 0
        assert label_bytes(out) == expected
        assert reader.torn == 0, reader.problems
        uris = [row["uri"] for row in read_labels(out)]
        assert len(uris) == len(set(uris)) == PICTURES
        predicted = Counter(line.split()[1] for line in count.read_text().splitlines())
        redone = sum(predicted.values()) - len(predicted)
        assert redone <= CALLS * UNIT * kills
        total, reads = total + kills, reads + reader.reads
        redone_most = max(redone_most, redone)
        print(f"seed {seed}: {kills} kills, {redone} redone, {reader.reads} reads", flush=True)
    print(f"{ROUNDS} rounds of {PICTURES}: {total} kills, {reads} reads, most redone {redone_most}")
    assert total > 0
