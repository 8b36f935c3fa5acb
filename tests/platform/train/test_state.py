from pathlib import Path

import pytest
import torch
from torch import nn

from d2det.config import TrainConfig
from d2det_platform.store import RunStore
from d2det_platform.train.metrics import MetricsLog
from d2det_platform.train.optimizer import build_optimizer
from d2det_platform.train.state import TrainingState, WeightAverage


def make_state(width: int = 4, optimizer: str = "sgd") -> TrainingState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
    built = build_optimizer(model, TrainConfig(optimizer=optimizer, lr=0.1))
    return TrainingState(model, built, WeightAverage(model, 0.99))


def run_steps(state: TrainingState, count: int) -> None:
    for _ in range(count):
        data = torch.randn(8, 3, generator=torch.Generator().manual_seed(state.step))
        state.optimizer.zero_grad()
        state.model(data).square().mean().backward()
        state.optimizer.step()
        state.average.update(state.model, state.step)
        state.step += 1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_interrupted_training_equals_undisturbed_training_bit_for_bit(optimizer: str) -> None:
    undisturbed = make_state(optimizer=optimizer)
    run_steps(undisturbed, 6)
    first, second = make_state(optimizer=optimizer), make_state(optimizer=optimizer)
    run_steps(first, 3)
    second.restore(first.files())
    run_steps(second, 3)
    assert second.files() == undisturbed.files()


def test_a_checkpoint_of_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="another --name"):
        make_state(5).restore(make_state(4).files())


def test_the_average_follows_the_weights() -> None:
    state = make_state()
    state.average.decay = 0.0
    run_steps(state, 1)
    for name, tensor in state.model.state_dict().items():
        torch.testing.assert_close(state.average.tensors[name], tensor)


def test_rows_after_the_resume_step_are_dropped(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    log = MetricsLog(store, 0)
    for step in range(1, 6):
        log.add(step, loss=step / 10)
    log.write()
    assert [row["step"] for row in MetricsLog(store, 3).rows] == [1, 2, 3]
