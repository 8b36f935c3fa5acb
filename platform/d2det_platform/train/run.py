"""Starts a training on the cluster, keeps it going to its end, and leaves the run's report."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from d2det.data.check import check_dataset
from d2det.data.coco import CocoDataset
from d2det_ops.digest import build_info
from d2det_platform.cluster import connect
from d2det_platform.store import RunStore, arrow_filesystem
from d2det_platform.train import card, crashes, preflight, stop
from d2det_platform.train.loop import train_worker
from d2det_platform.train.mlflow import check_mlflow
from d2det_platform.train.model import build_model
from d2det_platform.train.options import ClusterOptions, TrainOptions
from d2det_platform.train.outcome import Outcome, RunFailedError
from d2det_platform.train.report import write_report

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = "0.5"
"""How often Ray's controller looks at the workers: its default of 2 s makes every report wait."""
_CONTROLLER = "ray"  # folder of Ray Train's own files in the run folder

T = TypeVar("T")


def fit(options: TrainOptions) -> tuple[Outcome, list[str]]:
    """Trains as `options` say, continuing the run of that name if there is one.

    SIGINT and SIGTERM end it with a checkpoint, to be continued later.

    Returns:
        How it ended ("finished" or "stopped"), and the files of the run's report if it is finished.

    Raises:
        ValueError: data, weights, options or machines are unfit; found before training starts.
        RunFailedError: the run cannot go on; the message says why.
        ray.train.TrainingFailedError: workers died more often than allowed.
    """
    refuse_early(options)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_INTERVAL_S)
    connect()
    store = RunStore(options.run_url)
    preflight.check(options)
    card.open_card(options)
    store.write("config.json", options.model_dump_json(indent=1).encode())
    stop.clear(store)
    crashes.clear(store)
    with stop.signals_stop(store):
        outcome = _beside_main_thread(lambda: _train_to_an_end(options, store))
    stop.clear(store)
    if outcome.kind == "failed":
        raise RunFailedError(outcome.message)
    return outcome, write_report(options) if outcome.kind == "finished" else []


def refuse_early(options: TrainOptions) -> None:
    """Looks at data, weights and network once, so that no worker starts for nothing.

    Raises:
        ValueError: something is wrong with them; the message names every file and reason.
    """
    data, masks = options.data, options.model.mask is not None
    parts = [(data.train_annotations, data.train_images, masks)]
    if data.val_annotations is not None:
        parts.append((data.val_annotations, data.val_images or data.train_images, False))
    for file, images, with_masks in parts:
        report = check_dataset(file, images=images, masks=with_masks, decode=False)
        report.raise_if_bad()
        if report.warnings:
            logger.warning("%s", report.text())
    train = CocoDataset(data.train_images, data.train_annotations, masks=masks)
    if data.val_annotations is not None:
        categories = train.categories
        val_images = data.val_images or data.train_images
        CocoDataset(val_images, data.val_annotations, masks=False, categories=categories)
    if options.mlflow is not None:
        check_mlflow(options.mlflow)
    build_model(options, train.categories)


def _train_to_an_end(options: TrainOptions, store: RunStore) -> Outcome:
    """Starts groups of workers until one ends the run.

    Ray Train itself replaces workers and machines that die. Left to us are its controller's death
    and a group that ended because a machine was about to leave.
    """
    deaths = 0
    while True:
        try:
            result = _trainer(options).fit().return_value
        except RayActorError as error:
            deaths += 1
            if deaths > options.cluster.max_failures:
                raise
            logger.warning("the controller died (%.200s); starting another", error)
            continue
        outcome = Outcome(**result)
        card.add_outcome(store, outcome.as_dict())
        if outcome.kind != "leaving":
            return outcome
        logger.warning("a machine is leaving: going on from step %d without it", outcome.step)


def _trainer(options: TrainOptions) -> TorchTrainer:
    cluster = options.cluster
    filesystem, path = arrow_filesystem(options.run_url)
    return TorchTrainer(
        train_worker,
        train_loop_config={
            "options": options.model_dump(mode="json"),
            "driver": asdict(build_info()),
        },
        torch_config=TorchConfig(timeout_s=cluster.collective_timeout_s),
        scaling_config=_scaling(cluster),
        run_config=RunConfig(
            name=_CONTROLLER,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
        ),
    )


def _scaling(cluster: ClusterOptions) -> ScalingConfig:
    """Which workers Ray Train is to start where."""
    workers: Any = cluster.workers
    if cluster.min_workers is not None and cluster.min_workers < cluster.workers:
        workers = (cluster.min_workers, cluster.workers)
    selector: Any = cluster.labels or None
    if cluster.accelerators:
        selector = [
            {**cluster.labels, "ray.io/accelerator-type": kind}
            for kind, count in cluster.accelerators.items()
            for _ in range(count)
        ]
    return ScalingConfig(
        num_workers=workers,
        use_gpu=cluster.gpu,
        resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.gpu else {}),
        label_selector=selector,
        elastic_resize_monitor_interval_s=cluster.resize_check_s,
    )


def _beside_main_thread(work: Callable[[], T]) -> T:
    """Returns the result of `work`, done in a thread, so that the main one can take signals."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="training", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if errors:
        raise errors[0]
    return results[0]
