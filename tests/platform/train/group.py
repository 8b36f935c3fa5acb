"""Trainings without Ray: a torch process group on this machine, and small options for it."""

from __future__ import annotations

import faulthandler
import gc
import json
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from d2det_platform.train import setup
from d2det_platform.train.command import parse
from d2det_platform.train.host import PlainHost
from d2det_platform.train.loop import Trainer
from d2det_platform.train.options import TrainOptions
from d2det_platform.train.ranks import Ranks

DEVICE = torch.device(os.environ.get("D2DET_TEST_DEVICE", "cpu"))
"""Of every rank in these tests: on `cuda` the same trainings run on a GPU, all ranks on one."""
if DEVICE.type == "cuda":  # sums in any order would differ from run to run
    torch.use_deterministic_algorithms(True, warn_only=True)
ONE = Ranks(0, 1, DEVICE)
"""A rank that is all of them."""

SMALL = """
preset: d2det_lite_instance
input: {short_side: 96, long_side: 128}
train: {global_batch: 3, lr: 0.002, schedule: step, warmup_steps: 4, short_sides: null}
model:
  backbone: {fpn_channels: 32}
  roi_sampler: {samples_per_image: 32}
  roi_pooling: {offset_hidden: 32}
  classification: {hidden: 32}
  regression: {channels: 24, num_convs: 2, norm_groups: 6, max_samples_per_image: 8}
  mask: {channels: 16, scoring_hidden: 16}
tensorboard: false
"""


def small_options(folder: Path, **flags: object) -> TrainOptions:
    """Options of a small network in `folder`; in the names of `flags` dots are two underscores."""
    config = folder / "small.yaml"
    config.write_text(SMALL)
    options = {"config": config, "storage": folder / "runs"} | {
        key.replace("__", ".").replace("_", "-"): value for key, value in flags.items()
    }
    arguments = []
    for key, value in options.items():
        arguments += [f"--{key}", str(value)]
        if isinstance(value, bool):
            arguments[-2:] = [f"--{'' if value else 'no-'}{key}"]
    return parse(arguments)


def scene_options(
    scenes: Path, folder: Path, *, val: bool = False, **flags: object
) -> TrainOptions:
    """`small_options` for the pictures of the fixture `scenes`."""
    data = {
        "data__train_images": scenes / "train",
        "data__train_annotations": scenes / "annotations/instances_train.json",
    }
    if val:
        data["data__val_images"] = scenes / "val"
        data["data__val_annotations"] = scenes / "annotations/instances_val.json"
    return small_options(folder, **(data | flags))


def alone(options: TrainOptions, host: Any = None) -> Trainer:
    """A trainer that is the only rank, in this process."""
    return Trainer(options, ONE, host or PlainHost())


def rows_of(options: TrainOptions) -> list[dict[str, Any]]:
    """The run's log."""
    lines = (Path(options.run_url) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses_of(options: TrainOptions) -> list[float]:
    """The loss of every step, each of which must be there once and in order."""
    steps = [row for row in rows_of(options) if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))
    return [row["loss"] for row in steps]


@contextmanager
def float64_network() -> Iterator[None]:
    """Trainers built inside compute in float64, where no rounding tips a discrete choice over."""
    build = setup.build_model
    setup.build_model = lambda *args: build(*args).double()
    try:
        yield
    finally:
        setup.build_model = build


def in_processes(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Runs work(rank, *arguments) in `count` processes and returns what each returned, by rank."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_work, args=(rank, Path(folder), work, arguments))
            for rank in range(count)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        results = [
            torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(count)
        ]
    for result in results:
        assert "error" not in result, result["error"]
    return [result["value"] for result in results]


class Group:
    """A process group of the first `count` processes, as a context; None for the others."""

    def __init__(self, rank: int, count: int, place: Path) -> None:
        self.rank, self.count, self.place = rank, count, place

    def __enter__(self) -> Ranks | None:
        if self.rank >= self.count:
            return None
        if self.count > 1:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{self.place}",
                rank=self.rank,
                world_size=self.count,
            )
        return Ranks(self.rank, self.count, DEVICE)

    def __exit__(self, *_: object) -> None:
        # What still holds the group must go before it: afterwards it would abort the process.
        gc.collect()
        if self.rank < self.count and self.count > 1:
            dist.destroy_process_group()


def _work(rank: int, folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    faulthandler.enable()
    try:
        result = {"value": work(rank, *arguments)}
    except BaseException:
        result = {"error": traceback.format_exc()}
    torch.save(result, folder / f"{rank}.pt")
