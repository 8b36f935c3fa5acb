import pytest

from d2det.config import TrainConfig
from d2det_platform.train.schedule import learning_rate

OFFICIAL = TrainConfig()


def test_warm_up_starts_at_an_eightieth_and_is_linear() -> None:
    """d2det.md 9: base * (1 - (1 - it/1000) * (1 - 1/80))."""
    for step in (0, 250, 999):
        expected = 0.02 * (1 - (1 - step / 1000) * (1 - 1 / 80))
        assert learning_rate(step, 7330, OFFICIAL) == pytest.approx(expected)


def test_official_steps_divide_by_ten_after_epochs_20_and_23() -> None:
    rates = [learning_rate(epoch * 7330, 7330, OFFICIAL) for epoch in (19, 20, 22, 23)]
    assert rates == pytest.approx([0.02, 0.002, 0.002, 0.0002])


def test_cosine_ends_at_zero() -> None:
    config = TrainConfig(schedule="cosine", epochs=2, warmup_steps=0)
    assert learning_rate(0, 10, config) == config.lr
    assert learning_rate(10, 10, config) == pytest.approx(config.lr / 2)
    assert learning_rate(20, 10, config) == pytest.approx(0)
