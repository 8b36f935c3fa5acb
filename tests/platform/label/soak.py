"""Kills workers, drivers, raylets and whole nodes at random moments, and looks for any difference.

    python -m tests.platform.label.soak --rounds 20 --kills 3 --pictures 2000 --seed 0

A round labels the same pictures into a new folder and kills whenever a random number of them has
been predicted, so that every kill hits work; a driver that dies is started again. It ends with the
label files compared byte for byte with those of an undisturbed run, with the pictures that were
predicted more than once, and with what a reader beside it saw.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.platform.label.lakes import MODELS, label_bytes, make_lake

UNIT_PICTURES = 16
PICTURE = (40, 60)
KINDS = ("worker", "driver", "raylet", "node")
DRIVER_TIMEOUT_S = 240.0
CALLS_PER_WORKER = 2
WORKERS = 2


@dataclass
class Round:
    """What a round did and found."""

    seed: int
    kills: list[str] = field(default_factory=list)
    drivers: int = 0
    lost: int = 0
    doubled: int = 0
    changed_files: int = 0
    redone: int = 0
    reads: int = 0
    torn: int = 0
    seconds: float = 0.0

    @property
    def is_sound(self) -> bool:
        """Whether nothing was lost, doubled, changed or torn, and no more redone than may be."""
        bound = CALLS_PER_WORKER * WORKERS * UNIT_PICTURES * max(1, len(self.kills))
        wrong = self.lost + self.doubled + self.changed_files + self.torn
        return wrong == 0 and self.redone <= bound


class Machines:
    """A head, where drivers connect, and one more node, which may die; each has a CPU."""

    def __init__(self) -> None:
        os.environ["RAY_AUTH_MODE"] = "disabled"
        from ray.cluster_utils import Cluster

        args = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=args)
        self._other: Any = None
        self.renew()

    @property
    def address(self) -> str:
        """Where drivers connect."""
        return str(self._cluster.address)

    def workers(self) -> list[int]:
        """The processes that label, on both nodes."""
        nodes = [self._cluster.head_node, *([self._other] if self._other else [])]
        return [p for node in nodes for p in _children(_raylet(node)) if "MapWorker" in _title(p)]

    def kill_raylet(self) -> None:
        """Kills the raylet of the node that may die; its workers notice."""
        os.kill(_raylet(self._other), signal.SIGKILL)
        self._forget()

    def kill_node(self) -> None:
        """Kills all processes of the node that may die."""
        processes = _children(_raylet(self._other))
        os.kill(_raylet(self._other), signal.SIGKILL)
        for process in processes:
            _kill(process)
        self._forget()

    def renew(self) -> None:
        """Adds the other node if there is none."""
        if self._other is None:
            self._other = self._cluster.add_node(num_cpus=1, object_store_memory=100 << 20)

    def close(self) -> None:
        """Ends all nodes."""
        self._cluster.shutdown()

    def _forget(self) -> None:
        self._cluster.remove_node(self._other, allow_graceful=False)
        self._other = None


class Reader(threading.Thread):
    """Reads all labels over and over while they are written."""

    def __init__(self, out: Path) -> None:
        super().__init__(daemon=True)
        self._out, self._stop_now = out, threading.Event()
        self.reads = self.torn = 0
        self.problems: list[str] = []

    def run(self) -> None:
        """Reads until told to stop; a row twice or a file that does not parse is a torn read."""
        seen: frozenset[str] = frozenset()
        while not self._stop_now.wait(0.005):
            try:
                files = sorted((self._out / "labels").glob("*.parquet"))
                uris = [u for f in files for u in pq.read_table(f).column("uri").to_pylist()]
            except Exception as error:
                self.torn += 1
                self.problems.append(repr(error))
                continue
            now = frozenset(uris)
            if len(now) != len(uris) or not seen <= now:
                self.torn += 1
                self.problems.append("a row twice, or one that is gone again")
            seen = now
            self.reads += 1

    def stop(self) -> None:
        """Ends the thread."""
        self._stop_now.set()
        self.join()


def soak(
    folder: Path, *, rounds: int, kills: int, pictures: int, seed: int, sleep_s: float
) -> list[Round]:
    """Does the rounds, printing each, and returns them."""
    lake = make_lake(folder / "lake", pictures, (PICTURE,))
    machines = Machines()
    done = []
    try:
        undisturbed = folder / "undisturbed"
        start = time.monotonic()
        _drive(lake, undisturbed, machines, folder / "count-undisturbed", sleep_s).wait()
        expected = label_bytes(undisturbed)
        seconds = time.monotonic() - start
        assert sum(_counts(folder / "count-undisturbed").values()) == pictures, "no clean run"
        print(f"undisturbed: {len(expected)} files, {seconds:.1f} s", flush=True)
        for number in range(rounds):
            one = _round(folder, lake, machines, expected, seed + number, kills, sleep_s)
            print(json.dumps(asdict(one)), flush=True)
            done.append(one)
    finally:
        machines.close()
    return done


def _round(
    folder: Path,
    lake: Path,
    machines: Machines,
    expected: dict[str, bytes],
    seed: int,
    kills: int,
    sleep_s: float,
) -> Round:
    out, count = folder / f"out-{seed}", folder / f"count-{seed}"
    one, chance = Round(seed), random.Random(seed)
    pictures = len(_counts(folder / "count-undisturbed"))
    moments = [int((number + chance.random()) / kills * pictures) for number in range(kills)]
    reader = Reader(out)
    reader.start()
    start = time.monotonic()
    driver = _drive(lake, out, machines, count, sleep_s)
    one.drivers = 1
    while driver.poll() is None or driver.returncode != 0:
        if driver.poll() is not None:
            machines.renew()
            driver = _drive(lake, out, machines, count, sleep_s)
            one.drivers += 1
        if one.drivers > kills + 3 or time.monotonic() - start > DRIVER_TIMEOUT_S * (kills + 1):
            driver.kill()
            break
        if len(one.kills) < kills and _is_due(moments[len(one.kills)], count, machines):
            kind = KINDS[(seed + len(one.kills)) % len(KINDS)]
            one.kills.append(f"{kind} at {len(_counts(count))} pictures")
            _strike(kind, machines, driver, chance)
        time.sleep(0.05)
    reader.stop()
    one.seconds = round(time.monotonic() - start, 1)
    one.reads, one.torn = reader.reads, reader.torn
    _compare(one, out, expected, count)
    for problem in reader.problems[:3]:
        print(problem, flush=True)
    return one


def _is_due(moment: int, count: Path, machines: Machines) -> bool:
    """Whether that many pictures have been predicted and somebody is there to be killed."""
    return len(_counts(count)) > moment and bool(machines.workers())


def _strike(
    kind: str, machines: Machines, driver: subprocess.Popen[bytes], chance: random.Random
) -> None:
    if kind == "driver":
        driver.kill()
        driver.wait()
    elif kind == "worker":
        if workers := machines.workers():
            _kill(chance.choice(workers))
    elif kind == "raylet":
        machines.kill_raylet()
    else:
        machines.kill_node()
    machines.renew()


def _compare(one: Round, out: Path, expected: dict[str, bytes], count: Path) -> None:
    found = label_bytes(out)
    one.changed_files = sum(found.get(name) != data for name, data in expected.items())
    one.changed_files += len(found.keys() - expected.keys())
    rows: Counter[str] = Counter()
    for file in sorted((out / "labels").glob("*.parquet")):
        rows.update(pq.read_table(file).column("uri").to_pylist())
    one.doubled = sum(number - 1 for number in rows.values())
    predicted = _counts(count)
    one.lost = len(_counts(out.parent / "count-undisturbed")) - len(rows)
    one.redone = sum(predicted.values()) - len(predicted)


def _drive(
    lake: Path, out: Path, machines: Machines, count: Path, sleep_s: float
) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "RAY_ADDRESS": machines.address,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    # The workers' environment is that of the node, so the model is told by a file beside the lake.
    (lake.parent / "count-path").write_text(f"{count}\n{sleep_s}\n")
    command = [sys.executable, "-m", "d2det_platform.cli", "label", str(lake)]
    pixels = PICTURE[0] * PICTURE[1] * UNIT_PICTURES
    options = {
        "model": f"{MODELS}:Counting",
        "out": out,
        "unit-pixels": pixels,
        "shard-pictures": 200,
        "work.cpus-per-worker": 1,
        "work.decoders": 1,
        "output.samples": 0,
    }
    flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    log = (out.parent / f"{out.name}.log").open("ab")
    return subprocess.Popen(
        [*command, *flags, "--work.workers", str(WORKERS), str(WORKERS)],
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def _counts(path: Path) -> Counter[str]:
    """How often each picture was predicted."""
    if not path.exists():
        return Counter()
    return Counter(line.split()[-1] for line in path.read_text().splitlines() if " " in line)


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _children(pid: int) -> list[int]:
    """All processes below one."""
    below: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        below.setdefault(parent, []).append(int(stat.parent.name))
    found, next_ones = [], below.get(pid, [])
    while next_ones:
        found += next_ones
        next_ones = [child for each in next_ones for child in below.get(each, [])]
    return found


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def main() -> int:
    """Runs the rounds of the command line; 1 when a round is not sound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sleep-ms", type=float, default=5.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        os.environ["D2DET_TEST_SETTINGS"] = f"{folder}/count-path"
        rounds = soak(
            Path(folder),
            rounds=options.rounds,
            kills=options.kills,
            pictures=options.pictures,
            seed=options.seed,
            sleep_s=options.sleep_ms / 1000,
        )
    kills = sum(len(one.kills) for one in rounds)
    bad = [one.seed for one in rounds if not one.is_sound]
    print(
        f"{len(rounds)} rounds, {kills} kills: lost {sum(r.lost for r in rounds)}, "
        f"doubled {sum(r.doubled for r in rounds)}, "
        f"changed files {sum(r.changed_files for r in rounds)}, "
        f"redone {sum(r.redone for r in rounds)} pictures, "
        f"torn reads {sum(r.torn for r in rounds)} of {sum(r.reads for r in rounds)}; "
        f"not sound: {bad or 'none'}"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
