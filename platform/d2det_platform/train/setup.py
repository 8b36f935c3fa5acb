"""What a rank begins with: data, network and state of the run; and the weights it ends with."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from d2det.checkpoints.weights import save_weights
from d2det.data.coco import CocoDataset
from d2det.models.build import build_detector
from d2det.models.detector import D2Det
from d2det.structures import Category
from d2det_platform.store import RunStore
from d2det_platform.train.checkpoints import Checkpoint, load_if_sound, load_latest
from d2det_platform.train.model import build_model
from d2det_platform.train.optimizer import build_optimizer
from d2det_platform.train.options import TrainOptions
from d2det_platform.train.ranks import Ranks
from d2det_platform.train.state import TrainingState, WeightAverage

logger = logging.getLogger(__name__)


def load(options: TrainOptions, device: torch.device) -> tuple[CocoDataset, D2Det]:
    """Returns the training pictures and the network at step 0, on `device`."""
    data, masks = options.data, options.model.mask is not None
    dataset = CocoDataset(data.train_images, data.train_annotations, masks=masks)
    return dataset, build_model(options, dataset.categories, dataset).to(device)


def resume(options: TrainOptions, model: D2Det, ranks: Ranks) -> TrainingState:
    """Returns the state of the run's newest sound checkpoint, or of its beginning, on all ranks.

    Raises:
        FatalError: on all ranks, if the checkpoint cannot be used on one.
    """
    train, store = options.train, RunStore(options.run_url)
    average = WeightAverage(model, train.ema_decay) if train.ema_decay else None
    state = TrainingState(model, build_optimizer(model, train), average)
    newest = common_checkpoint(store, ranks)
    if newest is not None:
        ranks.together(lambda: state.restore(newest.files))
        logger.info("continuing %s from step %d", store.url, newest.step)
    return state


def common_checkpoint(
    store: RunStore, ranks: Ranks, before: int | None = None
) -> Checkpoint | None:
    """Returns the newest checkpoint that all ranks find sound and the same, or None.

    What a process had sent to an object store before it died may arrive later, between the reading
    of two ranks: a checkpoint that is not the same for all counts as damaged.
    """
    first = ranks.together(lambda: load_latest(store, before) if ranks.is_first else None)
    step, digest = ranks.gather((first.step, first.digest) if first else (0, ""))[0]
    if not step:
        return None
    mine = ranks.together(lambda: first or load_if_sound(store, step))
    if all(ranks.gather(mine is not None and mine.digest == digest)):
        return mine
    logger.error("step %d of %s is not the same for all ranks", step, store.url)
    return common_checkpoint(store, ranks, step)


def weights_file(
    state: TrainingState, options: TrainOptions, categories: Sequence[Category]
) -> bytes:
    """Returns a weights file of the weights that count: the averaged ones where there are."""
    assert isinstance(state.model, D2Det)
    model = build_detector(state.model.config)
    model.load_state_dict(state.average.tensors if state.average else state.model.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_weights(path, model, preset=options.as_preset(), categories=categories)
        return path.read_bytes()
