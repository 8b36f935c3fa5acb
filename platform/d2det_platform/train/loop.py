"""The training of one rank: batch, losses, one collective, backward, step.

What the training computes depends on the options and the data alone. How many ranks there are, who
takes which pictures, and how often the run was interrupted only decides where it is computed.
"""

from __future__ import annotations

import logging
import math
import platform
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from d2det.data.batches import collate
from d2det.data.loader import TrainingLoader
from d2det.data.sampler import steps_per_epoch
from d2det.memory import prefer_huge_pages
from d2det.models.prepare import DTYPES
from d2det.structures import TrainingBatch
from d2det_ops.digest import BuildInfo, check_same_build
from d2det_platform.store import RunStore
from d2det_platform.train import card, setup
from d2det_platform.train.balance import BALANCE_EVERY_STEPS, Balance
from d2det_platform.train.crashes import Crashes
from d2det_platform.train.gradient import GlobalGradient
from d2det_platform.train.host import Host, RayHost, describe_device
from d2det_platform.train.memory import PeakMemory
from d2det_platform.train.options import TrainOptions
from d2det_platform.train.outcome import FatalError, Outcome
from d2det_platform.train.precision import choose_precision, fastest_of
from d2det_platform.train.probe import first_plan
from d2det_platform.train.ranks import Ranks
from d2det_platform.train.recorder import Recorder
from d2det_platform.train.requests import Request, Requests
from d2det_platform.train.saving import Saver
from d2det_platform.train.scaler import LossScaler
from d2det_platform.train.schedule import learning_rate
from d2det_platform.train.scoring import Scoring
from d2det_platform.train.speed import Stopwatch
from d2det_platform.train.stop import StopWatch

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
"""How often to look for machines about to leave; Ray itself looks every 5 s."""
_ENDED = "epochs_ended"  # among the numbers of a checkpoint


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Trains as one rank of a Ray Train group, and returns its `Outcome` as a dict.

    config: "options", a dumped `TrainOptions`, and "driver", a dumped `BuildInfo`.
    """
    check_same_build(BuildInfo(**config["driver"]))
    options = TrainOptions.model_validate(config["options"])
    if not options.cluster.gpu:
        prefer_huge_pages()
    return train(options, Ranks.current(gpu=options.cluster.gpu), RayHost()).as_dict()


def train(options: TrainOptions, ranks: Ranks, host: Host) -> Outcome:
    """Trains as one of `ranks` from where the run stands, and returns how that ended."""
    step, crashes = 0, Crashes.of_group(RunStore(options.run_url), ranks)
    try:
        if (end := crashes.repeated()) is not None:
            return end
        trainer = Trainer(options, ranks, host)
        try:
            return trainer.run()
        finally:
            step = trainer.state.step
            trainer.close()
    except FatalError as error:
        return Outcome("failed", step, str(error))
    except Exception as error:
        crashes.note(step, error)
        raise


class Trainer:
    """One rank's view of the run."""

    def __init__(self, options: TrainOptions, ranks: Ranks, host: Host) -> None:
        """Resumes the run.

        Raises:
            FatalError: on all ranks, if data, weights or checkpoint are unfit on one.
        """
        train = options.train
        self.options, self.ranks, self.host = options, ranks, host
        self.store = RunStore(options.run_url)
        self.requests = Requests()
        self.stopwatch = Stopwatch(ranks.device)
        self.memory = PeakMemory(ranks.device)
        self.dataset, self.model = ranks.together(lambda: setup.load(options, ranks.device))
        self.steps_per_epoch = steps_per_epoch(len(self.dataset), train.global_batch)
        self.state = setup.resume(options, self.model, ranks)
        numbers = self.state.progress
        precision = choose_precision(options, numbers, ranks.gather(fastest_of(ranks.device)))
        self.scaler = LossScaler(numbers, enabled=precision == "fp16")
        self.gradient = GlobalGradient(
            self.model,
            ranks,
            stopwatch=self.stopwatch,
            dtype=DTYPES[precision],
            images_per_pass=options.cluster.images_per_pass,
        )
        self.loader = TrainingLoader(
            self.dataset,
            options.input,
            train,
            num_threads=options.data.loader_threads,
            pin_memory=options.cluster.gpu,
        )
        devices = ranks.gather(describe_device(ranks.device))
        self.balance = Balance(options, numbers, [f"{d['host']} {d['device']}" for d in devices])
        first_plan(self.balance, self.gradient, self.dataset, options, ranks, devices)
        self.skipped_in_a_row = 0
        self.step_ended_at = self.looked_at = time.monotonic()
        self.recorder: Recorder | None = None
        if ranks.is_first:
            self._open_files(devices, precision)
        self.scoring = Scoring(options, ranks, host, numbers, self._publish)

    def run(self) -> Outcome:
        """Trains from where the run stands to its end, or until something ends it before."""
        numbers = self.state.progress
        # A checkpoint may be of the last step of an epoch whose evaluation is still to be done.
        numbers.setdefault(_ENDED, self.state.step // self.steps_per_epoch)
        while (epoch := numbers[_ENDED]) < self.options.train.epochs and not self._is_pointless():
            end = self._train_epoch(epoch) or self._end_epoch(epoch)
            if end is not None:
                return end
        return self._finish()

    def close(self) -> None:
        """Ends the threads and closes the files."""
        self.loader.close()
        if self.recorder is not None:
            self.recorder.close()
            self.stop.close()

    def _train_epoch(self, epoch: int) -> Outcome | None:
        """Trains the steps of `epoch` that are still to do."""
        self.step_ended_at = time.monotonic()
        while (first := self.state.step - epoch * self.steps_per_epoch) < self.steps_per_epoch:
            plan = self.balance.plan
            batches = self.loader.batches(
                epoch, first_step=first, share=partial(plan.slice, self.ranks.rank)
            )
            while self.balance.plan == plan and (batch := self._next(batches)) is not None:
                granted = self._step(batch)
                end = self._grant(granted)
                if end is not None:
                    return end
                if self.ranks.is_first:
                    self._after_step()
        return None

    def _next(self, batches: Iterator[TrainingBatch]) -> TrainingBatch | None:
        """The next batch; an empty one if it cannot be read, so that no other rank waits."""
        try:
            return next(batches, None)
        except (ValueError, OSError) as error:
            self.requests.fail(f"{platform.node()}: {error}")
            return collate([], [], self.options.input)

    def _step(self, batch: TrainingBatch) -> frozenset[Request]:
        """One optimiser step on this rank's share of the global batch; what ranks asked for."""
        losses = self.gradient.compute(batch.to(self.ranks.device), scale=self.scaler.scale)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = self._norm(parameters)
        norm_value = float(norm)  # a GPU has finished the step then
        self.stopwatch.stop()
        named, granted = self._exchange(losses)
        if Request.FAIL not in granted:
            # All ranks have the same sums and gradients, and so decide alike.
            is_finite = all(map(math.isfinite, (norm_value, *named.values())))
            rate = self._rate()
            if is_finite:
                self._update(parameters, norm, rate)
            self.state.step += 1
            self._record(named, rate=rate, norm=norm_value, is_finite=is_finite)
        self.state.optimizer.zero_grad(set_to_none=True)
        return granted

    def _norm(self, parameters: list[nn.Parameter]) -> Tensor:
        """The norm of the gradient, after taking the loss scale out of it."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.scaler.enabled:
            torch._foreach_mul_(gradients, 1 / self.scaler.scale)
        return nn.utils.get_total_norm(gradients, foreach=True)

    def _exchange(self, losses: dict[str, Tensor]) -> tuple[dict[str, float], frozenset[Request]]:
        """The losses of the whole batch by name, and what any rank asked for."""
        mine = torch.stack(tuple(losses.values()))
        sums = self.ranks.sum(torch.cat((mine, self.requests.encode(mine)))).tolist()
        named = {f"loss/{name}": sums[i] for i, name in enumerate(losses)}
        granted = self.requests.decode(sums[len(losses) :])
        return {"loss": sum(named.values()), **named}, granted

    def _rate(self) -> float:
        return learning_rate(self.state.step, self.steps_per_epoch, self.options.train)

    def _update(self, parameters: list[nn.Parameter], norm: Tensor, rate: float) -> None:
        """Moves the weights, and the averaged ones after them."""
        state, clip = self.state, self.options.train.clip_grad_norm
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        if clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        state.optimizer.step()
        if state.average is not None:
            state.average.update(self.model, state.step)

    def _record(
        self, losses: dict[str, float], *, rate: float, norm: float, is_finite: bool
    ) -> None:
        """Logs the step; ends the run after too many in a row that were not finite."""
        step, now = self.state.step, time.monotonic()
        seconds, self.step_ended_at = now - self.step_ended_at, now
        is_excused = self.scaler.update(is_finite=is_finite)
        if is_finite:
            self.skipped_in_a_row = 0
            if self.recorder is not None:
                self.recorder.step(step, losses, seconds=seconds, rate=rate, norm=norm)
            return
        self.skipped_in_a_row += not is_excused
        if self.recorder is not None:
            reason = "the loss scale was lowered" if is_excused else "not finite"
            self.recorder.skipped(step, losses, f"loss or gradient is not finite ({reason})")
        if self.skipped_in_a_row > self.options.max_skipped_steps:
            raise FatalError(
                f"{self.skipped_in_a_row} steps in a row were not finite: lower --train.lr or "
                "lengthen --train.warmup-steps; the last checkpoint is sound"
            )

    def _grant(self, granted: frozenset[Request]) -> Outcome | None:
        """Does what any rank asked for, on all ranks; the end of the run if that is one."""
        if Request.FAIL in granted:
            return self._failed()
        if Request.STOP in granted:
            return self._leave("stopped")
        if Request.LOOK in granted and self.host.is_leaving():
            return self._leave("leaving")
        if self.state.step % BALANCE_EVERY_STEPS == 0:
            self._rebalance()
        return None

    def _after_step(self) -> None:
        """What the first rank does between steps."""
        if self.stop.is_requested:
            self.requests.make(Request.STOP)
        if time.monotonic() - self.looked_at > LOOK_EVERY_S:
            self.looked_at = time.monotonic()
            self.requests.make(Request.LOOK)
        if self.saver.is_due():
            self._save()

    def _rebalance(self) -> None:
        standing = self.balance.update(self.ranks.gather(self.stopwatch.take()))
        if standing is not None and self.recorder is not None:
            self.recorder.standing(self.state.step, standing)

    def _end_epoch(self, epoch: int) -> Outcome | None:
        """Evaluates if it is time to, and saves."""
        step, done = self.state.step, epoch + 1
        speeds = self.ranks.gather(self.stopwatch.peek() or self.balance.speed_of(self.ranks.rank))
        peaks = self.ranks.gather(self.memory.peak_bytes())
        if self.recorder is not None:
            self.recorder.epoch(step, images_per_s=speeds, peak_bytes=peaks)
        try:
            self.scoring.after_epoch(done, step, self._weights)
        except OSError as error:  # of rank 0, which alone writes, and last
            self.requests.fail(f"cannot save the evaluation: {error}")
        self.state.progress[_ENDED] = done
        if self.ranks.is_first:
            self._collect()
            self._save()
        if self.ranks.first_decides(int(self.requests.problem is not None)):
            return self._failed()
        self.host.report({"step": step, "epoch": done})
        return None

    def _collect(self, *, wait: bool = False) -> None:
        try:
            self.scoring.collect(wait=wait)
        except OSError as error:
            self.requests.fail(f"cannot save the evaluation: {error}")

    def _is_pointless(self) -> bool:
        return bool(self.ranks.first_decides(int(self.scoring.is_pointless())))

    def _publish(self, step: int, metrics: Any) -> None:
        assert self.recorder is not None
        self.recorder.evaluation(step, metrics)

    def _finish(self) -> Outcome:
        """Leaves the last weights and takes in what evaluations are still under way."""
        if self.ranks.is_first:
            self._collect(wait=True)
            self._save()
            try:
                self.store.write("last.safetensors", self._weights())
            except OSError as error:
                self.requests.fail(f"cannot save the last weights: {error}")
            if self.requests.problem is not None:
                return Outcome("failed", self.state.step, self.requests.problem)
        return Outcome("finished", self.state.step)

    def _leave(self, kind: Any) -> Outcome:
        """Saves; the run goes on from here some time."""
        if self.ranks.is_first:
            self._save()
            if self.requests.problem is not None:
                return Outcome("failed", self.state.step, self.requests.problem)
        return Outcome(kind, self.state.step)

    def _failed(self) -> Outcome:
        problems = {problem for problem in self.ranks.gather(self.requests.problem) if problem}
        return Outcome("failed", self.state.step, "; ".join(sorted(problems)))

    def _save(self) -> None:
        """Takes a checkpoint; storage that does not take it ends the run at the next step."""
        try:
            self.saver.save()
        except OSError as error:
            self.requests.fail(f"cannot save to {self.store.url}: {error}")

    def _open_files(self, devices: list[dict[str, Any]], precision: str) -> None:
        """What only the first rank has: records, checkpoints, and an ear for requests to stop."""
        self.recorder = Recorder(
            self.options, first_step=self.state.step, steps_per_epoch=self.steps_per_epoch
        )
        self.saver = Saver(self.options, self.store, self.state, self.recorder)
        self.stop = StopWatch(self.store)
        facts = {"precision": precision, "images_per_rank": self.balance.plan.images_per_rank}
        card.add_group(self.store, step=self.state.step, devices=devices, facts=facts)

    def _weights(self) -> bytes:
        return setup.weights_file(self.state, self.options, self.dataset.categories)
