"""The training of one rank: batch, losses, one collective, backward, step.

What the training computes depends on the options and the data alone. How many ranks there are, who
takes which pictures, and how often the run was interrupted only decides where it is computed.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from d2det.checkpoints.weights import save_weights
from d2det.data.coco import CocoDataset
from d2det.data.loader import TrainingLoader
from d2det.data.sampler import steps_per_epoch
from d2det.memory import prefer_huge_pages
from d2det.models.build import build_detector
from d2det.models.detector import D2Det
from d2det.models.losses import reduce_losses
from d2det.models.prepare import DTYPES
from d2det.structures import TrainingBatch
from d2det_ops.digest import BuildInfo, check_same_build
from d2det_platform.store import RunStore
from d2det_platform.train import checkpoints
from d2det_platform.train.checkpoints import Checkpoint
from d2det_platform.train.evaluation import PREDICTIONS, Evaluation, evaluate
from d2det_platform.train.metrics import MetricsLog
from d2det_platform.train.model import build_model
from d2det_platform.train.optimizer import build_optimizer
from d2det_platform.train.options import TrainOptions
from d2det_platform.train.plan import RankSpeed, equal_plan, replan
from d2det_platform.train.progress import Progress
from d2det_platform.train.ranks import Ranks
from d2det_platform.train.schedule import learning_rate
from d2det_platform.train.speed import Stopwatch
from d2det_platform.train.state import TrainingState, WeightAverage

logger = logging.getLogger(__name__)


def train_worker(config: dict[str, Any]) -> None:
    """Trains as one rank of a Ray Train group.

    config: "options", a dumped `TrainOptions`, and "driver", a dumped `BuildInfo`.
    """
    check_same_build(BuildInfo(**config["driver"]))
    options = TrainOptions.model_validate(config["options"])
    if not options.cluster.gpu:
        prefer_huge_pages()
    trainer = Trainer(options, Ranks.current(gpu=options.cluster.gpu))
    trainer.run()


class Trainer:
    """One rank's view of the run."""

    def __init__(self, options: TrainOptions, ranks: Ranks) -> None:
        self.options = options
        self.ranks = ranks
        self.store = RunStore(options.run_url)
        self.dataset = CocoDataset(
            options.data.train_images,
            options.data.train_annotations,
            masks=options.model.mask is not None,
        )
        train = options.train
        self.steps_per_epoch = steps_per_epoch(len(self.dataset), train.global_batch)
        self.stopwatch = Stopwatch(ranks.device)
        self.model = build_model(options, self.dataset.categories, self.dataset).to(ranks.device)
        self.state = self._resume()
        self.losses = self._parallel(_Losses(self.model, options, ranks, self.stopwatch))
        self.loader = TrainingLoader(
            self.dataset,
            options.input,
            train,
            num_threads=options.data.loader_threads,
            pin_memory=options.cluster.gpu,
        )
        self.plan = equal_plan(train.global_batch, ranks.count)
        self.log = MetricsLog(self.store, self.state.step)
        self.progress = Progress(train.epochs * self.steps_per_epoch, self.steps_per_epoch)
        self.saved_at = self.step_ended_at = time.monotonic()
        self.skipped_in_a_row = 0

    def run(self) -> None:
        """Trains from where the run stands to its end."""
        while self.state.step < self.options.train.epochs * self.steps_per_epoch:
            epoch = self.state.step // self.steps_per_epoch
            self._train_epoch(epoch)
            self._end_epoch(epoch)
        if self.ranks.is_first:
            self._write_weights("last.safetensors")
        self.loader.close()

    def _train_epoch(self, epoch: int) -> None:
        """Trains the steps of `epoch` that are still to do."""
        self.step_ended_at = time.monotonic()
        batches = self.loader.batches(
            epoch,
            first_step=self.state.step % self.steps_per_epoch,
            share=partial(self.plan.slice, self.ranks.rank),
        )
        for batch in batches:
            self._step(batch)
            if self.ranks.is_first and self._checkpoint_is_due():
                self._save()

    def _step(self, batch: TrainingBatch) -> None:
        """One optimiser step on this rank's share of the global batch."""
        state, train = self.state, self.options.train
        rate = learning_rate(state.step, self.steps_per_epoch, train)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        self.stopwatch.start(len(batch))
        losses = self.losses(batch.to(self.ranks.device))
        # Shares of all ranks add up to the loss of the whole batch; DDP averages, hence the count.
        torch.stack(tuple(losses.values())).sum().mul(self.ranks.count).backward()
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        is_finite = bool(torch.isfinite(norm))  # the same on all ranks: gradients are summed
        self.stopwatch.stop()
        if is_finite:
            if train.clip_grad_norm is not None:
                nn.utils.clip_grads_with_norm_(parameters, train.clip_grad_norm, norm)
            state.optimizer.step()
            if state.average is not None:
                state.average.update(self.model, state.step)
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        self._record(losses, rate=rate, norm=float(norm), is_finite=is_finite)

    def _record(
        self, losses: dict[str, Tensor], *, rate: float, norm: float, is_finite: bool
    ) -> None:
        """Logs the step; stops the run after too many in a row that were not finite."""
        parts = self.ranks.sum(torch.stack(tuple(losses.values())).detach()).tolist()
        named = {f"loss/{name}": value for name, value in zip(losses, parts, strict=True)}
        step, now = self.state.step, time.monotonic()
        seconds, self.step_ended_at = now - self.step_ended_at, now
        named = {"loss": sum(parts), **named}
        epoch = (step - 1) // self.steps_per_epoch
        if is_finite:
            self.skipped_in_a_row = 0
            self.log.add(step, epoch=epoch, seconds=seconds, **named, lr=rate, grad_norm=norm)
            if self.ranks.is_first:
                self.progress.step(step, named, self.options.train.global_batch)
            return
        self.skipped_in_a_row += 1
        self.log.add(step, epoch=epoch, event="skipped: loss or gradient is not finite")
        logger.error(
            "step %d: loss or gradient is not finite (%s); the weights stay as they were",
            step,
            ", ".join(f"{name} {value:.3g}" for name, value in named.items()),
        )
        if self.skipped_in_a_row > self.options.max_skipped_steps:
            raise FloatingPointError(
                f"{self.skipped_in_a_row} steps in a row were not finite: lower --train.lr or "
                "lengthen --train.warmup-steps; the last checkpoint is sound"
            )

    def _end_epoch(self, epoch: int) -> None:
        """Evaluates if it is time to, saves, and shares the work anew."""
        options, step = self.options, self.state.step
        done = epoch + 1
        is_last = done == options.train.epochs
        if options.data.val_annotations and (is_last or done % options.evaluate_every_epochs == 0):
            evaluation = evaluate(self._averaged_model(), options, self.ranks)
            if self.ranks.is_first:
                self._keep_best(evaluation)
        if self.ranks.is_first:
            self._save()
        ray.train.report({"step": step, "epoch": done})
        self._share_anew()

    def _keep_best(self, evaluation: Evaluation) -> None:
        """Logs the evaluation and keeps the weights if they are the best so far."""
        options, progress, metrics = self.options, self.state.progress, evaluation.metrics
        self.log.add(self.state.step, event="evaluation", metrics=metrics)
        self.progress.evaluation(metrics)
        if metrics[options.best_metric] > progress.get("best", -1.0):
            progress["best"] = metrics[options.best_metric]
            self.store.write(PREDICTIONS, json.dumps(evaluation.results).encode())
            self._write_weights("best.safetensors")

    def _save(self) -> None:
        """Writes log and checkpoint, in this order: resuming cuts the log to the checkpoint."""
        self.log.write()
        checkpoints.save(
            self.store,
            Checkpoint(self.state.step, self.state.files()),
            keep=self.options.checkpoints_kept,
        )
        self.saved_at = time.monotonic()

    def _checkpoint_is_due(self) -> bool:
        if self.state.step % self.steps_per_epoch == 0:
            return False  # the end of an epoch saves after its evaluation, which must not be missed
        every = self.options.checkpoint_every_steps
        return (every is not None and self.state.step % every == 0) or (
            time.monotonic() - self.saved_at >= self.options.checkpoint_every_s
        )

    def _resume(self) -> TrainingState:
        """The state of the run's newest sound checkpoint, or of its beginning."""
        train = self.options.train
        average = WeightAverage(self.model, train.ema_decay) if train.ema_decay else None
        state = TrainingState(self.model, build_optimizer(self.model, train), average)
        # One rank verifies and decides, so that all resume from the same step.
        newest = checkpoints.load_latest(self.store) if self.ranks.is_first else None
        step = self.ranks.first_decides(newest.step if newest else 0)
        if step:
            state.restore((newest or checkpoints.load(self.store, step)).files)
            logger.info("continuing %s from step %d", self.store.url, step)
        return state

    def _parallel(self, losses: _Losses) -> nn.Module:
        """The losses behind DDP, which sums gradients while backward still runs."""
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self.stopwatch.mark)
        if self.ranks.count == 1:
            return losses
        return DistributedDataParallel(losses, gradient_as_bucket_view=True)

    def _share_anew(self) -> None:
        """Deals the pictures of the coming steps by the speeds measured so far."""
        speeds = self.ranks.gather(self.stopwatch.images_per_s())
        if None in speeds or self.ranks.count == 1:
            return
        limit = self.options.train.global_batch
        plan = replan(self.plan, [RankSpeed(speed, limit) for speed in speeds])
        if plan != self.plan and self.ranks.is_first:
            logger.info(
                "ranks compute %s images/s: pictures per step %s -> %s",
                ", ".join(f"{speed:.2f}" for speed in speeds),
                self.plan.images_per_rank,
                plan.images_per_rank,
            )
        self.plan = plan

    def _averaged_model(self) -> D2Det:
        """A copy of the model with the weights that count: the averaged ones where there are."""
        model = build_detector(self.model.config)
        average = self.state.average
        model.load_state_dict(average.tensors if average else self.model.state_dict())
        return model.to(self.ranks.device)

    def _write_weights(self, name: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            save_weights(
                path,
                self._averaged_model(),
                preset=self.options.as_preset(),
                categories=self.dataset.categories,
            )
            self.store.write(name, path.read_bytes())


class _Losses(nn.Module):
    """The network together with its losses: what DDP wraps."""

    def __init__(
        self, model: D2Det, options: TrainOptions, ranks: Ranks, stopwatch: Stopwatch
    ) -> None:
        super().__init__()
        self.model = model
        self.ranks = ranks
        self.stopwatch = stopwatch
        self.dtype = DTYPES[options.train.precision]

    def forward(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """Returns this rank's share of every loss of the global batch."""
        enabled = self.dtype != torch.float32
        with torch.autocast(self.ranks.device.type, self.dtype, enabled=enabled):
            terms = self.model.loss_terms(batch)
        self.stopwatch.pause()
        losses = reduce_losses(terms, self.ranks.sum)
        self.stopwatch.resume()
        return losses
