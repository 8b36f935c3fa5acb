"""Our loop under Ray against the same model in a bare DDP loop: time and CPU time of a step.

Both sides train the lite instance detector on the same batches with two processes of one thread.
The bare side is what a person would write: spawn, DDP, forward, backward, step. Where Ray's own
processes share the cores with the training, compare the CPU time that the workers use.

    python benchmarks/train_loop.py --data DIR [--steps 30]
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed as dist
import tyro
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training import flags

from d2det.data.coco import CocoDataset
from d2det.data.loader import TrainingLoader
from d2det.models.losses import reduce_losses
from d2det.structures import TrainingBatch
from d2det_ops.digest import build_info
from d2det_platform.cluster import connect
from d2det_platform.train.command import parse
from d2det_platform.train.host import RayHost
from d2det_platform.train.loop import Trainer
from d2det_platform.train.model import build_model
from d2det_platform.train.optimizer import build_optimizer
from d2det_platform.train.options import TrainOptions
from d2det_platform.train.ranks import Ranks

WORKERS = 2
WARM_UP = 3
WANTED = 1.05


@dataclass
class Arguments:
    """What to measure."""

    data: Path
    """A folder in COCO format: images/ and instances_train.json."""
    steps: int = 30
    rounds: int = 2
    short_side: int = 160
    json: Path = Path("benchmarks/results/train_loop.json")


def main(arguments: Arguments) -> None:
    """Measures both sides in turn, prints the table, and writes it."""
    connect(num_cpus=WORKERS, object_store_bytes=100_000_000)
    rows: dict[str, list[dict[str, float]]] = {"bare": [], "ours": []}
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            options = options_of(arguments, Path(folder), f"round{number}")
            rows["bare"].append(bare(options, arguments.steps, Path(folder)))
            rows["ours"].append(ours(options, arguments.steps))
    table = Table("", "bare", "ours", "ours / bare", "wanted", title="seconds of a step")
    results: dict[str, Any] = {"rounds": rows}
    for name in ("wall", "cpu"):
        sides = {side: statistics.median(row[name] for row in rows[side]) for side in rows}
        ratio = sides["ours"] / sides["bare"]
        results[name] = {**sides, "ratio": ratio}
        numbers = [f"{sides['bare']:.3f}", f"{sides['ours']:.3f}", f"{ratio:.3f}"]
        table.add_row(name, *numbers, f"<= {WANTED}" if name == "cpu" else "")
    Console().print(table)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(results, indent=1))


def bare(options: TrainOptions, steps: int, folder: Path) -> dict[str, float]:
    """Seconds of a step, wall and CPU, of the bare loop."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    arguments = (options.model_dump(mode="json"), steps, str(folder), results)
    processes = [
        context.Process(target=bare_worker, args=(rank, *arguments)) for rank in range(WORKERS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return combined([results.get() for _ in processes])


def bare_worker(rank: int, dumped: dict[str, Any], steps: int, folder: str, results: Any) -> None:
    """One process of the bare loop."""
    torch.set_num_threads(1)
    options = TrainOptions.model_validate(dumped)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/bare", rank=rank, world_size=WORKERS
    )
    dataset = CocoDataset(options.data.train_images, options.data.train_annotations)
    network = build_model(options, dataset.categories)
    model = DistributedDataParallel(Losses(network), broadcast_buffers=False)
    optimizer = build_optimizer(network, options.train)
    loader = TrainingLoader(dataset, options.input, options.train)
    batches = loader.batches(0, share=lambda size: slice(rank * size // 2, (rank + 1) * size // 2))
    clock = Clock()
    for _ in range(steps):
        losses = model(next(batches))
        optimizer.zero_grad()
        losses.sum().mul(WORKERS).backward()
        nn.utils.clip_grad_norm_(network.parameters(), options.train.clip_grad_norm or 1e9)
        optimizer.step()
        clock.tick()
    results.put(clock.result())
    loader.close()
    dist.destroy_process_group()


class Losses(nn.Module):
    """The network with its losses, as the bare loop's DDP wraps it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TrainingBatch) -> torch.Tensor:
        """Returns the losses of this rank's share."""
        terms = self.model.loss_terms(batch)
        return torch.stack(list(reduce_losses(terms, all_reduce).values()))


def all_reduce(counts: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(counts)
    return counts


def ours(options: TrainOptions, steps: int) -> dict[str, float]:
    """Seconds of a step, wall and CPU, of our loop under Ray Train."""
    result = TorchTrainer(
        our_worker,
        train_loop_config={
            "options": options.model_dump(mode="json"),
            "driver": asdict(build_info()),
            "steps": steps,
        },
        scaling_config=ScalingConfig(num_workers=WORKERS),
        run_config=RunConfig(name="ray", storage_path=str(Path(options.run_url).resolve())),
    ).fit()
    return combined(result.return_value)


def our_worker(config: dict[str, Any]) -> list[dict[str, float]]:
    """One worker of our loop, timed step by step."""
    options = TrainOptions.model_validate(config["options"])
    ranks = Ranks.current(gpu=False)
    trainer = Trainer(options, ranks, RayHost())
    clock, after = Clock(), trainer._grant

    def grant(granted: Any) -> Any:
        end = after(granted)
        clock.tick()
        return end if len(clock.wall) < config["steps"] else trainer._leave("stopped")

    trainer._grant = grant
    trainer.run()
    trainer.close()
    gathered: list[dict[str, float]] = ranks.gather(clock.result())
    return gathered


class Clock:
    """Wall and CPU time of every step of this process."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self._last = time.perf_counter(), time.process_time()

    def tick(self) -> None:
        """Ends a step."""
        now = time.perf_counter(), time.process_time()
        self.wall.append(now[0] - self._last[0])
        self.cpu.append(now[1] - self._last[1])
        self._last = now

    def result(self) -> dict[str, float]:
        """Returns medians over the steps after the first ones."""
        return {
            "wall": statistics.median(self.wall[WARM_UP:]),
            "cpu": statistics.median(self.cpu[WARM_UP:]),
        }


def combined(ranks: list[dict[str, float]]) -> dict[str, float]:
    """The wall time of the slowest rank, and the CPU time of all."""
    return {
        "wall": max(rank["wall"] for rank in ranks),
        "cpu": sum(rank["cpu"] for rank in ranks),
    }


def options_of(arguments: Arguments, folder: Path, name: str) -> TrainOptions:
    """Options of the training that both sides do."""
    values: dict[str, object] = {
        "preset": "d2det_lite_instance",
        "name": name,
        "storage": folder,
        "data.train-images": arguments.data / "images",
        "data.train-annotations": arguments.data / "instances_train.json",
        "train.global-batch": 4,
        "train.short-sides": "None",
        "train.ema-decay": "None",
        "input.short-side": arguments.short_side,
        "input.long-side": 2 * arguments.short_side,
        "cluster.workers": WORKERS,
        "cluster.shares": "equal",
    }
    return parse(flags(values))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
