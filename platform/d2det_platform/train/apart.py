"""Evaluations beside the training: weights and results meet in the run folder.

A result is found there by whoever runs the training then, so a restart neither loses nor repeats
an evaluation.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from d2det.checkpoints.weights import load_detector
from d2det_platform.store import RunStore, local_copy
from d2det_platform.train.evaluation import Evaluation, evaluate
from d2det_platform.train.options import TrainOptions
from d2det_platform.train.ranks import Ranks

FOLDER = "evaluations"


def weights_name(step: int) -> str:
    """Returns the name in the run folder of the weights after `step` that wait for their scores."""
    return f"{FOLDER}/step-{step:09d}.safetensors"


def result_name(step: int) -> str:
    """Returns the name in the run folder of the scores of the weights after `step`."""
    return f"{FOLDER}/step-{step:09d}.json"


def score_apart(options: dict[str, Any], step: int) -> None:
    """Scores the weights of `step` in the run folder and leaves the result beside them.

    options: a dumped `TrainOptions`.
    """
    parsed = TrainOptions.model_validate(options)
    store = RunStore(parsed.run_url)
    device = torch.device("cuda" if parsed.cluster.gpu else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(parsed.cluster.cpus_per_worker)
    with local_copy(store.url.rstrip("/") + "/" + weights_name(step)) as path:
        detector = load_detector(path, device=device)
    evaluation = evaluate(detector, parsed, Ranks(0, 1, device))
    store.write(result_name(step), json.dumps(evaluation.as_dict()).encode())


def result_of(store: RunStore, step: int) -> Evaluation | None:
    """Returns the scores of the weights after `step`, if they are there."""
    try:
        return Evaluation(**json.loads(store.read(result_name(step))))
    except FileNotFoundError:
        return None
