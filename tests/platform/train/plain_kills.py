"""Kills without a cluster: the processes of a torch group die at random, a supervisor starts anew.

    python -m tests.platform.train.plain_kills --kills 30 --seed 1

What Ray adds (noticing deaths, placing workers) is for `soak`; here the training itself is held to
its promise, in seconds a kill.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from d2det_platform.train.host import PlainHost
from d2det_platform.train.loop import train
from d2det_platform.train.options import TrainOptions
from d2det_platform.train.ranks import Ranks
from tests.platform.train.object_store import ENVIRONMENT, flaky_s3
from tests.platform.train.soak import long_options, result_of

RANKS = 2
FINISHED, ABANDONED = 0, 3
"""Exit codes of a process: its run is over; another process died."""
NOTICE_S = 20.0
"""How long the others may take to notice a death. One that never met the dead waits for it for half
an hour, and is ended by whoever started it, as Ray Train ends a group."""


def undisturbed(options: TrainOptions, folder: Path) -> dict[str, Any]:
    """Trains without a kill."""
    assert run_group(options, folder, None) == [FINISHED] * RANKS
    return result_of(options)


def disturbed(
    options: TrainOptions, folder: Path, kills: int, choose: random.Random, *, longest_s: float
) -> tuple[dict[str, Any], int]:
    """Trains while a random process is killed at random moments, `kills` times at most.

    Returns:
        The result, and how many kills hit before the run was over.
    """
    done = 0
    while True:
        kill = (choose.randrange(RANKS), choose.uniform(0.0, longest_s)) if done < kills else None
        codes = run_group(options, folder, kill)
        if codes == [FINISHED] * RANKS:
            return result_of(options), done
        assert -signal.SIGKILL in codes, codes
        done += 1


def run_group(options: TrainOptions, folder: Path, kill: tuple[int, float] | None) -> list[int]:
    """Trains with a new group until it ends; `kill` is a rank and a moment in seconds."""
    # Forked from a server that has imported everything and computed nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__spec__.name if __spec__ else __name__])
    place = Path(tempfile.mkdtemp(dir=folder)) / "group"
    processes = [context.Process(target=work, args=(rank, options, place)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    if kill is not None:
        rank, delay = kill
        processes[rank].join(delay)
        if processes[rank].is_alive():
            print(f"  {options.name}: rank {rank} after {delay:.2f} s", flush=True)
            processes[rank].kill()
            for process in processes:
                process.join(NOTICE_S)
                process.kill()  # nothing if it has gone
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def work(rank: int, options: TrainOptions, place: Path) -> None:
    """One process of the group; it leaves when another one does."""
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=RANKS)
        outcome = train(options, Ranks(rank, RANKS, torch.device("cpu")), PlainHost())
    except RuntimeError:  # the connection to the other one is gone
        os._exit(ABANDONED)
    if outcome.kind != "finished":
        print(f"  {options.name}: rank {rank} ends: {outcome}", flush=True)
        os._exit(1)
    os._exit(FINISHED)


def main() -> int:
    """Disturbs runs of 200 steps until enough were killed, and prints a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--per-run", type=int, default=5)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/plain_kills.json"))
    parser.add_argument(
        "--object-store", action="store_true", help="runs in S3 of which a tenth of the calls fail"
    )
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    choose, rows = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as server:
        folder, place = Path(name), {}
        if arguments.object_store:
            address, _ = server.enter_context(flaky_s3())
            os.environ |= {**ENVIRONMENT, "AWS_ENDPOINT_URL": address}
            place = {"storage": "s3://lake/runs"}
        options = long_options(folder, epochs=arguments.epochs, name="undisturbed", **place)
        started = time.monotonic()
        wanted = undisturbed(options, folder)
        longest_s = time.monotonic() - started
        while (done := sum(row["kills"] for row in rows)) < arguments.kills:
            run = options.model_copy(update={"name": f"disturbed-{len(rows)}"})
            count = min(arguments.per_run, arguments.kills - done)
            # Later moments than the run takes would hit nothing.
            result, hit = disturbed(run, folder, count, choose, longest_s=0.6 * longest_s)
            rows.append(
                {
                    "kills": hit,
                    "steps": len(result["losses"]),
                    "state_equal": result["state"] == wanted["state"],
                    "losses_equal": result["losses"] == wanted["losses"],
                }
            )
            print(rows[-1], flush=True)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"seed": arguments.seed, "runs": rows}, indent=1))
    sound = all(row["state_equal"] and row["losses_equal"] for row in rows)
    print(f"{len(rows)} runs, {sum(row['kills'] for row in rows)} kills, all equal: {sound}")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
