"""When to evaluate, where, what the best weights are, and whether more training is of use."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from d2det.checkpoints.weights import load_detector
from d2det_platform.store import RunStore
from d2det_platform.train import apart
from d2det_platform.train.evaluation import PREDICTIONS, Evaluation, evaluate
from d2det_platform.train.host import Host
from d2det_platform.train.options import TrainOptions
from d2det_platform.train.ranks import Ranks

logger = logging.getLogger(__name__)

BEST = "best.safetensors"
MAX_PENDING = 2
"""Evaluations under way at once; if they are slower than training, some epochs go without."""
_BEST, _SINCE, _PENDING = "best", "evaluations_since_best", "evaluations_pending"

Publish = Callable[[int, Mapping[str, float]], None]
"""Takes the step and the metrics of an evaluation."""


class Scoring:
    """The evaluations of a run; its numbers live in the checkpoint."""

    def __init__(
        self,
        options: TrainOptions,
        ranks: Ranks,
        host: Host,
        numbers: dict[str, Any],
        publish: Publish,
    ) -> None:
        """Takes over the evaluations that were under way when the checkpoint was taken.

        Args:
            options: of the run.
            ranks: who trains.
            host: where evaluations can run besides.
            numbers: those of the checkpoint.
            publish: logs an evaluation; called on rank 0.
        """
        self._options, self._ranks, self._host = options, ranks, host
        self._numbers, self._publish = numbers, publish
        self._store = RunStore(options.run_url)
        self._handles: dict[int, Any] = {}
        if ranks.is_first:
            for step in self._pending:
                if apart.result_of(self._store, step) is None:
                    self._handles[step] = host.score(options, step)

    def after_epoch(self, done: int, step: int, weights: Callable[[], bytes]) -> None:
        """Evaluates the weights after `step` if it is time to; all ranks call it.

        Args:
            done: epochs done.
            step: optimiser steps done.
            weights: makes the weights file to be scored, the same on every rank.
        """
        options = self._options
        is_last = done == options.train.epochs
        if options.data.val_annotations is None:
            return
        if not is_last and done % options.evaluate_every_epochs:
            return
        # At the end there is no training that could be held up, and all ranks are free to help.
        if self._ranks.first_decides(int(not is_last and self._goes_apart())):
            self._begin_apart(step, weights)
        else:
            self._score_here(step, weights)

    def collect(self, *, wait: bool = False) -> None:
        """Takes in the evaluations that have ended, on rank 0; with `wait`, all of them."""
        for step in list(self._pending):
            handle = self._handles.get(step)
            if handle is not None and not self._host.is_over(handle, wait=wait):
                if not wait:
                    continue
                logger.warning("step %d is evaluated here: no place was free elsewhere", step)
                self._host.give_up(handle)
                apart.score_apart(self._options.model_dump(mode="json"), step)
            self._handles.pop(step, None)
            self._pending.remove(step)
            evaluation = apart.result_of(self._store, step)
            if evaluation is None:
                logger.error("the evaluation after step %d failed; training goes on", step)
                continue
            self._take(step, evaluation, self._store.read(apart.weights_name(step)))
            self._store.remove(apart.weights_name(step))

    def is_pointless(self) -> bool:
        """Returns whether the metric has not improved for as long as `early_stop` allows."""
        patience = self._options.early_stop
        return patience is not None and self._numbers.get(_SINCE, 0) >= patience

    @property
    def _pending(self) -> list[int]:
        pending: list[int] = self._numbers.setdefault(_PENDING, [])
        return pending

    def _goes_apart(self) -> bool:
        where = self._options.evaluate_on
        return where == "apart" or (where == "auto" and self._host.has_room(self._options))

    def _begin_apart(self, step: int, weights: Callable[[], bytes]) -> None:
        if not self._ranks.is_first:
            return
        if len(self._pending) >= MAX_PENDING:
            logger.warning(
                "step %d is not evaluated: %d evaluations are still under way; raise "
                "--evaluate-every-epochs",
                step,
                len(self._pending),
            )
            return
        self._store.write(apart.weights_name(step), weights())
        self._pending.append(step)
        self._handles[step] = self._host.score(self._options, step)

    def _score_here(self, step: int, weights: Callable[[], bytes]) -> None:
        """All ranks score, each its part of the pictures."""
        content = weights()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / BEST
            path.write_bytes(content)
            detector = load_detector(path, device=self._ranks.device)
        evaluation = evaluate(detector, self._options, self._ranks)
        if self._ranks.is_first:
            self._take(step, evaluation, content)

    def _take(self, step: int, evaluation: Evaluation, weights: bytes) -> None:
        """Publishes an evaluation, and keeps its weights if they are the best so far."""
        numbers, value = self._numbers, evaluation.metrics[self._options.best_metric]
        self._publish(step, evaluation.metrics)
        if value > numbers.get(_BEST, -1.0):
            numbers[_BEST], numbers[_SINCE] = value, 0
            self._store.write(PREDICTIONS, json.dumps(evaluation.results).encode())
            self._store.write(BEST, weights)
        else:
            numbers[_SINCE] = numbers.get(_SINCE, 0) + 1
