"""The whole policy, estimates and plans together, against simulated machines."""

import random

import pytest

from d2det_platform.train.balance import Balance
from d2det_platform.train.estimate import SpeedEstimate
from d2det_platform.train.options import ClusterOptions, DataOptions, TrainOptions
from d2det_platform.train.plan import RankSpeed
from tests.platform.train.simulation import simulate


def options(shares: str = "measured", global_batch: int = 12) -> TrainOptions:
    made = TrainOptions(
        data=DataOptions(train_images="-", train_annotations="-"),
        cluster=ClusterOptions(workers=2, shares=shares),
    )
    train = made.train.model_copy(update={"global_batch": global_batch})
    return made.model_copy(update={"train": train})


@pytest.mark.parametrize("images_per_rank", [8, 16])
def test_64_unequal_ranks_stay_near_the_ideal_and_do_not_oscillate(images_per_rank: int) -> None:
    run = simulate(1, images_per_rank=images_per_rank)
    assert run.mean_loss < 0.03
    assert run.reversals == 0
    assert any(100 < look < 105 for look in run.changes), "a throttled rank is noticed at once"
    assert len(run.changes) < 16


def test_an_estimate_averages_noise_away() -> None:
    choose = random.Random(0)
    estimate = SpeedEstimate(5 * choose.lognormvariate(0, 0.03))
    for _ in range(40):
        estimate.add(5 * choose.lognormvariate(0, 0.03))
    assert estimate.images_per_s == pytest.approx(5, rel=0.02)


def test_an_estimate_follows_a_real_change_and_forgives_one_outlier() -> None:
    estimate = SpeedEstimate(5.0)
    for _ in range(10):
        estimate.add(5.0)
    estimate.add(2.0)
    assert estimate.images_per_s == pytest.approx(5.0)
    estimate.add(5.0)
    estimate.add(2.0)
    estimate.add(2.0)
    assert estimate.images_per_s == pytest.approx(2.0)


def test_opposite_outliers_are_no_change() -> None:
    estimate = SpeedEstimate(5.0)
    for speed in (5.0, 5.0, 5.0, 2.0, 12.0, 2.0):
        estimate.add(speed)
    assert estimate.images_per_s == pytest.approx(5.0)


def test_pictures_are_dealt_by_the_probe_and_anew_when_a_rank_slows_down() -> None:
    balance = Balance(options(), {}, ["a", "b"])
    assert balance.plan.images_per_rank == (6, 6)
    balance.begin([RankSpeed(3.0, 12), RankSpeed(1.0, 12)])
    assert balance.plan.images_per_rank == (9, 3)
    balance.update([1.0, 1.0])
    standing = balance.update([1.0, 1.0])
    assert standing.is_new_plan
    assert standing.plan.images_per_rank == (6, 6)
    assert standing.stragglers == (0,)
    assert standing.as_row()["stragglers"] == [0]


def test_a_restart_on_the_same_devices_keeps_the_plan_and_on_others_measures_anew() -> None:
    numbers: dict = {}
    Balance(options(), numbers, ["a", "b"]).begin([RankSpeed(3.0, 12), RankSpeed(1.0, 12)])
    again = Balance(options(), numbers, ["a", "b"])
    again.begin([RankSpeed(1.0, 12), RankSpeed(1.0, 12)])
    assert again.plan.images_per_rank == (9, 3)
    assert Balance(options(), numbers, ["a", "c"]).plan.images_per_rank == (6, 6)
    assert Balance(options(global_batch=4), numbers, ["a", "b"]).plan.images_per_rank == (2, 2)


def test_equal_shares_are_measured_but_never_moved() -> None:
    balance = Balance(options("equal"), {}, ["a", "b"])
    for _ in range(5):
        standing = balance.update([3.0, 1.0])
    assert standing.plan.images_per_rank == (6, 6)
    assert standing.stragglers == (1,)


def test_a_rank_without_pictures_keeps_its_known_speed() -> None:
    balance = Balance(options(global_batch=2), {}, ["a", "b"])
    balance.begin([RankSpeed(9.0, 2), RankSpeed(1.0, 2)])
    assert balance.plan.images_per_rank == (2, 0)
    assert balance.update([9.0, None]).images_per_s == pytest.approx((9.0, 1.0))


def test_shares_that_do_not_fit_at_once_are_measured_without_the_cost_of_their_passes() -> None:
    balance = Balance(options(), {}, ["a", "b"])
    balance.begin([RankSpeed(1.0, 12, 2), RankSpeed(1.0, 12, 2)])
    assert balance.update([0.75, 0.75]).images_per_s == pytest.approx((1.0, 1.0))
