"""The training does not depend on how a global batch is cut over ranks."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from d2det.data.coco import CocoDataset
from d2det_platform.train import loop
from d2det_platform.train.host import PlainHost
from d2det_platform.train.options import TrainOptions
from d2det_platform.train.plan import BatchPlan
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
        update(*args)

    trainer._update = watch
    while trainer.state.step < steps:
        trainer._train_epoch(trainer.state.step // trainer.steps_per_epoch)
    if ranks.is_first:
        trainer.recorder.write()
    trainer.close()
    return first


def difference(mine: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Largest relative difference of any parameter's gradient."""
    assert mine.keys() == wanted.keys()
    return max(
        float((mine[n] - wanted[n]).norm() / wanted[n].norm().clamp(min=1e-9)) for n in wanted
    )


def run_losses(options: TrainOptions, kind: str, cut: Any) -> list[float]:
    return losses_of(options.model_copy(update={"name": run_name(kind, cut)}))


def run_name(kind: str, cut: Any) -> str:
    return f"{kind}-{cut}".translate(str.maketrans("", "", "(), "))


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    """Real pictures of several shapes, five global batches of six an epoch (the last is short)."""
    data = shared_dir("data", "nwpu_vhr10")
    dataset = CocoDataset(data / "images", data / "instances_mini_train.json")
    shapes = {round(float(w / h), 1) for h, w in dataset.index.image_sizes.tolist()}
    assert len(shapes) > 3
    return small_options(
        tmp_path_factory.mktemp("cuts"),
        data__train_images=data / "images",
        data__train_annotations=data / "instances_mini_train.json",
        train__global_batch=6,
        train__epochs=5,
        train__lr=0.01,
        train__ema_decay=0.99,
        cluster__shares="equal",
    )


@pytest.mark.parametrize("steps", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_gradients_and_trajectories_do_not_depend_on_the_cut(
    options: TrainOptions, tmp_path: Path, steps: int
) -> None:
    """In float64, where no rounding tips a choice (which anchor, which proposal) over."""
    run = options.model_copy(update={"storage": str(tmp_path)})
    gradients = in_processes(3, train_cuts, run, tmp_path, "f64", steps)[0]
    wanted = run_losses(run, "f64", (6,))
    assert len(wanted) == steps
    for cut in (*CUTS[1:], PASSES):
        assert difference(gradients[cut], gradients[(6,)]) < 1e-7, cut
        assert run_losses(run, "f64", cut) == pytest.approx(wanted, rel=1e-10), cut
