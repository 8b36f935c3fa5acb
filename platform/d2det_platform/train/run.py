"""Starts a training on the cluster, waits for it, and leaves the run folder's report."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from d2det.data.check import check_dataset
from d2det.data.coco import CocoDataset
from d2det_ops.digest import build_info
from d2det_platform.cluster import connect
from d2det_platform.store import RunStore
from d2det_platform.train.loop import train_worker
from d2det_platform.train.model import build_model
from d2det_platform.train.options import TrainOptions
from d2det_platform.train.report import write_report

logger = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT_S = 600
"""A rank that hangs is noticed after this; Ray's default of half an hour is too long to pay for."""
POLL_INTERVAL_S = "0.5"
"""How often Ray's controller looks at the workers: its default of 2 s makes every report wait."""


def fit(options: TrainOptions) -> list[str]:
    """Trains as `options` say, continuing the run of that name if there is one.

    Returns:
        The files of the run's report.

    Raises:
        ValueError: data, weights or options are unfit; found before anything is started.
        ray.train.TrainingFailedError: the run failed for good.
    """
    refuse_early(options)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_INTERVAL_S)
    connect()
    RunStore(options.run_url).write("config.json", options.model_dump_json(indent=1).encode())
    cluster = options.cluster
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "options": options.model_dump(mode="json"),
            "driver": asdict(build_info()),
        },
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=cluster.gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker}
            | ({"GPU": 1} if cluster.gpu else {}),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=options.run_url,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
        ),
    )
    trainer.fit()
    return write_report(options)


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
    build_model(options, train.categories)
