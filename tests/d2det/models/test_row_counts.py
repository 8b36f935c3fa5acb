import pytest
import torch
from torch import Tensor

from d2det.config import ModelConfig
from d2det.models import row_counts
from d2det.models.losses import reduce_losses
from d2det.models.row_counts import rounded_up, with_spare_rows
from tests.d2det.models.test_learning import CONFIGS, batch, network

GPU = torch.device("cuda")


def test_gpus_compute_few_more_rows_in_few_different_numbers() -> None:
    rounded = [rounded_up(count, GPU) for count in range(10_001)]
    for count, rows in enumerate(rounded):
        assert count <= rows <= count * 17 / 16
    assert len(set(rounded)) < 200
    assert rounded[:33] == list(range(33))
    assert rounded_up(1001, torch.device("cpu")) == 1001


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_spare_rows_are_zeros_behind_the_others(
    memory: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_counts, "rounded_up", lambda count, device: count + 3)
    x = torch.randn(5, 4, 7, 7).to(memory_format=memory)
    padded = with_spare_rows(x)
    assert torch.equal(padded[:5], x)
    assert torch.equal(padded[5:], torch.zeros(3, 4, 7, 7))
    assert padded.is_contiguous(memory_format=memory)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_spare_rows_change_no_loss_and_no_gradient(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learn() -> tuple[list[float], list[Tensor]]:
        model = network(config)
        losses = reduce_losses(model.loss_terms(batch(range(6))), lambda counts: counts)
        torch.stack(tuple(losses.values())).sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return [loss.item() for loss in losses.values()], gradients

    losses, gradients = learn()
    calls = []

    def more(count: int, device: torch.device) -> int:
        calls.append(count)
        return count + 5 if count else 0

    monkeypatch.setattr(row_counts, "rounded_up", more)
    monkeypatch.setattr("d2det.models.roi_pooling.rounded_up", more)
    spare_losses, spare_gradients = learn()
    assert len(calls) > 3
    assert spare_losses == pytest.approx(losses, rel=1e-12)
    for gradient, spare in zip(gradients, spare_gradients, strict=True):
        torch.testing.assert_close(spare, gradient, rtol=1e-9, atol=1e-12)
