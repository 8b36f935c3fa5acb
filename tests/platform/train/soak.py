"""Trainings whose processes are killed at random moments, held to an undisturbed one.

    python -m tests.platform.train.soak --kills 30 --seed 1

A run trains on two workers of a cluster of an empty head and two nodes, all on this machine. Killed
with SIGKILL are workers, Ray Train's controller, and the raylets of nodes, which are replaced by
new ones. Every moment is printed. In the end weights, optimiser and averages must equal the
undisturbed run's bit for bit, and the log must hold every step once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Literal

import ray
from ray.cluster_utils import Cluster

from d2det.data.synthetic import write_dataset
from d2det_platform.cluster import OWN_CLUSTER
from d2det_platform.serve.local import free_port
from d2det_platform.store import RunStore
from d2det_platform.train import card, checkpoints
from d2det_platform.train.metrics import FILE as METRICS
from d2det_platform.train.options import TrainOptions
from d2det_platform.train.run import fit
from d2det_platform.train.state import TENSORS
from tests.platform.train.group import small_options

Victim = Literal["worker", "controller", "node"]
VICTIMS: tuple[Victim, ...] = ("worker", "controller", "node")
PATIENCE_S = 240.0
"""How long a group of workers may take to train again."""
STORE_BYTES = 100_000_000

logger = logging.getLogger(__name__)


class SmallCluster:
    """An empty head and two nodes of one CPU each, on this machine."""

    def __init__(self) -> None:
        # Chosen before the first node starts: a training would switch the token on in this process,
        # and nodes that are added later would refuse the head.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        # A controller that has died is found out through the dashboard, which must not stand in
        # the way of another cluster's on this machine.
        dashboard = {"include_dashboard": True, "dashboard_port": free_port()}
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES, **dashboard},
        )
        self._nodes = [self._add(), self._add()]
        ray.init(address=self._cluster.address, runtime_env=OWN_CLUSTER)

    def replace_a_node(self, which: int) -> None:
        """Kills the raylet of a node as a power cut would, and adds a new node."""
        node = self._nodes[which]
        for process in node.all_processes["raylet"]:
            process.process.kill()
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes[which] = self._add()

    def close(self) -> None:
        """Ends the cluster and this process's connection."""
        ray.shutdown()
        self._cluster.shutdown()

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)


def long_options(folder: Path, *, epochs: int, **flags: object) -> TrainOptions:
    """Options of a training of 20 steps an epoch on two workers, for pictures made here."""
    data = folder / "scenes"
    if not data.exists():
        write_dataset(data, split="train", num_images=40, size=(96, 128))
    return small_options(
        folder,
        data__train_images=data / "train",
        data__train_annotations=data / "annotations/instances_train.json",
        train__global_batch=2,
        train__epochs=epochs,
        train__ema_decay=0.99,
        cluster__workers=2,
        cluster__shares="equal",
        checkpoint_every_steps=7,
        **flags,
    )


def undisturbed(options: TrainOptions) -> dict[str, Any]:
    """Trains without a disturbance and returns the result to compare with."""
    fit(options)
    return result_of(options)


def disturbed(
    options: TrainOptions, cluster: SmallCluster, victims: list[Victim], choose: random.Random
) -> tuple[dict[str, Any], list[Victim]]:
    """Trains while each of `victims` is killed at a random moment.

    Returns:
        The result, and those that were killed: a run may end before the last one's moment.
    """
    errors: list[BaseException] = []
    killed: list[Victim] = []

    def run() -> None:
        try:
            fit(options)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    store = RunStore(options.run_url)
    for number, victim in enumerate(victims):
        devices = _wait_for_group(store, number, thread)
        delay = choose.uniform(0.0, 4.0)
        time.sleep(delay)
        if not thread.is_alive():
            break
        who = choose.randrange(2)
        print(f"  {options.name}: {victim} {who}, {delay:.2f} s into group {number}", flush=True)
        _kill(victim, who, devices, cluster)
        killed.append(victim)
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the run hangs"
    if errors:
        raise errors[0]
    return result_of(options), killed


def result_of(options: TrainOptions) -> dict[str, Any]:
    """What two runs must agree in: state, losses, and that every step is logged once."""
    store = RunStore(options.run_url)
    newest = checkpoints.load_latest(store)
    assert newest is not None
    rows = [json.loads(line) for line in store.read(METRICS).splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, newest.step + 1)), "steps in the log"
    return {"state": newest.files[TENSORS], "losses": [row["loss"] for row in steps]}


def _wait_for_group(store: RunStore, number: int, thread: threading.Thread) -> list[Any]:
    """The device table of the group that trains after `number` disturbances."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and thread.is_alive():
        groups = card.read_card(store).get("groups", [])
        if len(groups) > number:
            devices: list[Any] = groups[-1]["devices"]
            return devices
        time.sleep(0.2)
    assert not thread.is_alive(), f"no group trains after {number} disturbances"
    return []


def _kill(victim: Victim, who: int, devices: list[Any], cluster: SmallCluster) -> None:
    if victim == "node":
        cluster.replace_a_node(who)
        return
    pids = [device["pid"] for device in devices]
    if victim == "controller":
        pids = [_controller_pid()] * 2
    os.kill(pids[who], signal.SIGKILL)


def _controller_pid() -> int:
    from ray._private import state

    for actor in state.actors().values():
        if actor["ActorClassName"] == "TrainController" and actor["State"] == "ALIVE":
            return int(actor["Pid"])
    raise AssertionError("no controller is alive")


def main() -> int:
    """Disturbs runs of 200 steps until enough were killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--per-run", type=int, default=3, help="kills of one run")
    parser.add_argument("--folder", type=Path, help="keeps the runs; the next call goes on there")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/train_kills.json"))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60")
    with tempfile.TemporaryDirectory() as folder:
        rows = soak(arguments, arguments.folder or Path(folder))
    sound = all(row["state_equal"] and row["losses_equal"] for row in rows)
    print(f"{len(rows)} runs, {sum(len(r['victims']) for r in rows)} kills, all equal: {sound}")
    return 0 if sound else 1


def soak(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Runs until enough were killed; returns what became of every run, and writes it as JSON."""
    choose = random.Random(arguments.seed)
    folder.mkdir(exist_ok=True)
    cluster = SmallCluster()
    options = long_options(folder, epochs=arguments.epochs, name="undisturbed")
    wanted = undisturbed(options)
    rows: list[dict[str, Any]] = []
    while (done := sum(len(row["victims"]) for row in rows)) < arguments.kills:
        count = min(arguments.per_run, arguments.kills - done)
        order = [choose.choice(VICTIMS) for _ in range(count)]
        started = time.monotonic()
        run = options.model_copy(update={"name": f"disturbed-{arguments.seed}-{len(rows)}"})
        result, killed = disturbed(run, cluster, order, choose)
        row = {
            "victims": killed,
            "state_equal": result["state"] == wanted["state"],
            "losses_equal": result["losses"] == wanted["losses"],
            "seconds": time.monotonic() - started,
        }
        rows.append(row)
        print(row, flush=True)
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"seed": arguments.seed, "runs": rows}, indent=1))
    cluster.close()
    return rows


if __name__ == "__main__":
    sys.exit(main())
