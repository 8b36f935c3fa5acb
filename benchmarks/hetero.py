"""One worker slowed threefold: equal shares against shares by measured speed.

Two training processes of this machine compute the lite instance detector; one of them is stopped
two thirds of the time, in short turns, as a machine a third as fast would be. Measured in turns, in
one run: what each computes by itself at the same time as the other (their own speeds, whose sum is
all that could be had), the equal split, and the split that the training has found after its probe
and some looks at its steps.

    python benchmarks/hetero.py --data DIR [--rounds 5]
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed as dist
import tyro
from rich.console import Console
from rich.table import Table
from training import flags

from d2det.memory import prefer_huge_pages
from d2det.structures import TrainingBatch
from d2det_platform.train.balance import BALANCE_EVERY_STEPS
from d2det_platform.train.command import parse
from d2det_platform.train.host import PlainHost
from d2det_platform.train.loop import Trainer
from d2det_platform.train.options import TrainOptions
from d2det_platform.train.plan import BatchPlan, equal_plan
from d2det_platform.train.ranks import Ranks

TURN_S = 0.06
"""Length of a turn of the slowed worker: a third of it computing, two thirds stopped. Short, since
a slow machine computes slowly and does not keep silent: every message to the other waits for it."""
WANTED_OF_SUM, WANTED_OVER_EQUAL = 0.90, 1.45


@dataclass
class Arguments:
    """What to measure."""

    data: Path
    """A folder in COCO format: images/ and instances_train.json."""
    global_batch: int = 8
    short_side: int = 448
    """Of the pictures: the preset's own. In smaller ones the fixed cost of a step shows."""
    steps: int = 3
    """Steps of each way in a round."""
    rounds: int = 5
    looks: int = 1
    """Times that the training looks at its steps and deals anew before it is measured."""
    slowdown: float = 3.0
    json: Path = Path("benchmarks/results/hetero.json")


def main(arguments: Arguments) -> None:
    """Measures, prints the table, and writes it."""
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(arguments, Path(folder))
    figures = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    own = figures["own speed, fast"] + figures["own speed, slowed"]
    figures["measured / sum of own"] = figures["measured split"] / own
    figures["measured / equal"] = figures["measured split"] / figures["equal split"]
    table = Table("", "images/s or ratio", "wanted", title="one of two workers slowed threefold")
    wanted = {"measured / sum of own": WANTED_OF_SUM, "measured / equal": WANTED_OVER_EQUAL}
    for name, value in figures.items():
        table.add_row(name, f"{value:.2f}", f">= {wanted[name]}" if name in wanted else "")
    Console().print(table)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"median": figures, "rounds": rows}, indent=1))


def measure(arguments: Arguments, folder: Path) -> list[dict[str, float]]:
    """Runs both processes, slows the second, and returns the first one's rounds."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = [
        context.Process(target=work, args=(rank, arguments, folder, results)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    pid = processes[1].pid
    assert pid is not None
    with slowed(pid, arguments.slowdown):
        rows: list[dict[str, float]] = results.get()
        for process in processes:
            process.join()
    return rows


@contextmanager
def slowed(pid: int, factor: float) -> Iterator[None]:
    """Stops process `pid` for all but 1/`factor` of the time."""
    over = threading.Event()

    def turns() -> None:
        while not over.is_set():
            try:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(TURN_S * (1 - 1 / factor))
                os.kill(pid, signal.SIGCONT)
                time.sleep(TURN_S / factor)
            except ProcessLookupError:
                return

    thread = threading.Thread(target=turns, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def work(rank: int, arguments: Arguments, folder: Path, results: Any) -> None:
    """One of the two ranks."""
    prefer_huge_pages()  # as a worker of the training job does
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    trainer = Trainer(
        options_of(arguments, folder), Ranks(rank, 2, torch.device("cpu")), PlainHost()
    )
    if rank == 0:
        print("plan of the probe:", trainer.balance.plan.images_per_rank, flush=True)
    settle(trainer, arguments.looks)
    plans = {
        "equal split": equal_plan(arguments.global_batch, 2),
        "measured split": trainer.balance.plan,
    }
    if rank == 0:
        print("plan of the training:", plans["measured split"].images_per_rank, flush=True)
    rows = []
    for _ in range(arguments.rounds):
        own = trainer.ranks.gather(own_speed(trainer, arguments))
        row = {"own speed, fast": own[0], "own speed, slowed": own[1]}
        for name, plan in plans.items():
            row[name] = split_speed(trainer, plan, arguments)
        rows.append(row)
        if rank == 0:
            print({name: round(value, 3) for name, value in row.items()}, flush=True)
    trainer.close()
    if rank == 0:
        results.put(rows)
    dist.destroy_process_group()


def settle(trainer: Trainer, looks: int) -> None:
    """Trains on for some of the measurements that every training makes, and keeps their plan."""
    for _ in range(looks):
        batches = trainer.loader.batches(
            0, share=partial(trainer.balance.plan.slice, trainer.ranks.rank)
        )
        for _ in range(BALANCE_EVERY_STEPS):
            trainer._step(next(batches))


def own_speed(trainer: Trainer, arguments: Arguments) -> float:
    """Images/s of this process by itself: steps on its measured share, update included."""

    def step(batch: TrainingBatch) -> None:
        trainer.gradient.compute_alone(batch)
        parameters = [p for p in trainer.model.parameters() if p.grad is not None]
        # At rate 0, for the weights must stay those of the other process.
        trainer._update(parameters, trainer._norm(parameters), 0.0)
        trainer.gradient.forget()

    share = trainer.balance.plan.images_per_rank[trainer.ranks.rank]
    return share / seconds_of(step, trainer, arguments.steps)


def split_speed(trainer: Trainer, plan: BatchPlan, arguments: Arguments) -> float:
    """Images/s of both together under `plan`, by whole steps of the training loop."""
    trainer.balance.plan = plan
    return arguments.global_batch / seconds_of(trainer._step, trainer, arguments.steps)


def seconds_of(step: Callable[[TrainingBatch], object], trainer: Trainer, steps: int) -> float:
    """Seconds of a step on this rank's share, after one in which the loader has come up."""
    share = partial(trainer.balance.plan.slice, trainer.ranks.rank)
    batches = trainer.loader.batches(0, share=share)
    step(next(batches))
    trainer.ranks.gather(None)
    started = time.perf_counter()
    for _ in range(steps):
        step(next(batches))
    return (time.perf_counter() - started) / steps


def options_of(arguments: Arguments, folder: Path) -> TrainOptions:
    """Options of the training whose steps are measured."""
    values: dict[str, object] = {
        "preset": "d2det_lite_instance",
        "storage": folder,
        "data.train-images": arguments.data / "images",
        "data.train-annotations": arguments.data / "instances_train.json",
        "train.global-batch": arguments.global_batch,
        "train.short-sides": "None",
        "input.short-side": arguments.short_side,
        "input.long-side": 2 * arguments.short_side,
        "cluster.workers": 2,
    }
    return parse(flags(values))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
