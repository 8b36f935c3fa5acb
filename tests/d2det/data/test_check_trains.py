"""Whatever the data check lets through trains: five real steps, every loss and gradient finite."""

import itertools

import pytest
import torch

from d2det.config import InputConfig, TrainConfig
from d2det.data.check import check_dataset
from d2det.data.coco import open_coco
from d2det.data.loader import TrainingLoader
from d2det.models.build import build_detector
from d2det.models.losses import reduce_losses
from tests.d2det.data.bad_annotations import CASES, write
from tests.d2det.models.small import CONFIG

INPUT, TRAIN = InputConfig(short_side=64, long_side=96), TrainConfig(global_batch=2)
STEPS = 5


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.refused], ids=lambda case: case.name
)
def test_five_steps_have_finite_losses_and_gradients(case, tmp_path):
    path = write(case, tmp_path)
    check_dataset(path).raise_if_bad()
    loader = TrainingLoader(open_coco(path), INPUT, TRAIN)
    torch.manual_seed(0)
    model = build_detector(CONFIG).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    epochs = itertools.chain.from_iterable(loader.batches(epoch) for epoch in range(STEPS))
    for batch in itertools.islice(epochs, STEPS):
        losses = reduce_losses(model.loss_terms(batch), lambda counts: counts)
        assert all(torch.isfinite(loss) for loss in losses.values())
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        optimizer.step()
