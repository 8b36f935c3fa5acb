"""One training for every way to cut its global batches: what they differ in.

`python -m tests.platform.train.cuts` prints it for float64 and float32.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from d2det_platform.train import loop
from d2det_platform.train.host import PlainHost
from d2det_platform.train.loop import Trainer
from d2det_platform.train.options import TrainOptions
from d2det_platform.train.plan import BatchPlan
from d2det_platform.train.ranks import Ranks
from d2det_platform.train.requests import Request
from tests.platform.train.group import (
    Group,
    float64_network,
    in_processes,
    losses_of,
    small_options,
)
from tests.shared import shared_dir

CUTS = [(6,), (3, 3), (4, 2), (3, 2, 1), (6, 0)]
PASSES = "passes"
"""Stands beside the cuts: one rank that computes its six pictures two at a time."""


def options_of(folder: Path) -> TrainOptions:
    """Real pictures of several shapes, four global batches of six an epoch."""
    data = shared_dir("data", "nwpu_vhr10")
    return small_options(
        folder,
        data__train_images=data / "images",
        data__train_annotations=data / "instances_mini_train.json",
        train__global_batch=6,
        train__epochs=5,
        train__lr=6e-4,  # the preset's; at 0.01 it diverges, and rounding grows with it
        train__ema_decay=0.99,
        cluster__shares="equal",
    )


def train_cuts(
    rank: int, options: TrainOptions, folder: Path, kind: str, steps: int
) -> dict[Any, dict[str, torch.Tensor]]:
    """First gradient of every cut, for a run each; in one of three processes.

    kind: "f64" or "f32", the precision.
    """
    gradients = {}
    for cut in (*CUTS, PASSES):
        plan = BatchPlan((6,) if cut == PASSES else cut)
        name = run_name(kind, cut)
        run = options.model_copy(update={"name": name})
        with Group(rank, len(plan.images_per_rank), folder / name) as ranks:
            if ranks is None:
                continue
            with float64_network() if kind == "f64" else nullcontext():
                gradients[cut] = train_cut(run, ranks, plan, cut, steps)
    return gradients


def train_cut(
    options: TrainOptions, ranks: Any, plan: BatchPlan, cut: Any, steps: int
) -> dict[str, torch.Tensor]:
    trainer = loop.Trainer(options, ranks, PlainHost())
    trainer.balance.plan = plan
    trainer.gradient.images_per_pass = 2 if cut == PASSES else None
    first: dict[str, torch.Tensor] = {}
    update = trainer._update

    def watch(*args: Any) -> None:
        if not first:
            named = trainer.model.named_parameters()
            first.update({n: p.grad.double().clone() for n, p in named if p.grad is not None})
        if trainer.state.step == steps - 2:
            trainer.requests.make(Request.STOP)  # granted with the next step
        update(*args)

    trainer._update = watch
    while trainer.state.step < steps:
        trainer._train_epoch(trainer.state.step // trainer.steps_per_epoch)
    if ranks.is_first:
        trainer.recorder.write()
    trainer.close()
    return first


def differences(
    mine: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]
) -> tuple[float, float]:
    """Relative difference of two gradients: of the worst parameter, and of all together."""
    assert mine.keys() == wanted.keys()
    distance = {name: float((mine[name] - wanted[name]).norm()) for name in wanted}
    size = {name: float(wanted[name].norm()) for name in wanted}
    whole = sum(d**2 for d in distance.values()) ** 0.5 / sum(s**2 for s in size.values()) ** 0.5
    return max(distance[name] / max(size[name], 1e-9) for name in wanted), whole


def run_losses(options: TrainOptions, kind: str, cut: Any) -> list[float]:
    return losses_of(options.model_copy(update={"name": run_name(kind, cut)}))


def run_name(kind: str, cut: Any) -> str:
    return f"{kind}-{cut}".translate(str.maketrans("", "", "(), "))


def watch_keys(trainer: Trainer, seen: list[list[int]]) -> None:
    """Notes the pictures of every step of this rank."""
    compute = trainer.gradient.compute

    def watched(batch: Any, **kwargs: Any) -> Any:
        seen.append(list(batch.image_keys))
        return compute(batch, **kwargs)

    trainer.gradient.compute = watched


def resized(rank: int, options: TrainOptions, folder: Path) -> list[list[int]]:
    """Trains with 2, then 1, then 3 ranks; keys of the pictures this rank saw, by step."""
    seen: list[list[int]] = []
    for count, until in ((2, 2), (1, 5), (3, 9)):
        with Group(rank, count, folder / str(count)) as ranks:
            if ranks is not None:
                train_until(options, ranks, until, seen)
            seen += [[]] * (until - len(seen))
    return seen


def train_until(options: TrainOptions, ranks: Ranks, until: int, seen: list[list[int]]) -> None:
    """Trains to step `until`, where somebody asks the run to stop."""
    with float64_network():
        trainer = Trainer(options, ranks, PlainHost())
    watch_keys(trainer, seen)
    record = trainer._record

    def record_and_ask(*args: Any, **kwargs: Any) -> None:
        record(*args, **kwargs)
        if trainer.state.step == until - 1:
            trainer.requests.make(Request.STOP)

    trainer._record = record_and_ask
    outcome = trainer.run()
    trainer.close()
    assert outcome.step == until, outcome


def cut_and_resize(
    rank: int, cut: TrainOptions, resize: TrainOptions, folder: Path, steps: int
) -> tuple[dict[Any, dict[str, torch.Tensor]], list[list[int]]]:
    """Both in the same processes, whose start costs most of the time."""
    return train_cuts(rank, cut, folder, "f64", steps), resized(rank, resize, folder)


def main() -> int:
    """Prints the table of both precisions."""
    for kind in ("f64", "f32"):
        with tempfile.TemporaryDirectory() as folder:
            options = options_of(Path(folder))
            gradients = in_processes(3, train_cuts, options, Path(folder), kind, 20)[0]
            wanted = run_losses(options, kind, (6,))
            for cut in (*CUTS[1:], PASSES):
                losses = run_losses(options, kind, cut)
                worst = max(abs(a - b) / abs(b) for a, b in zip(losses, wanted, strict=True))
                one, all_of_them = differences(gradients[cut], gradients[(6,)])
                print(
                    f"{kind} {cut}: gradient {all_of_them:.1e} (worst parameter {one:.1e}), "
                    f"losses of {len(wanted)} steps {worst:.1e}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
