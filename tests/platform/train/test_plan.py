import itertools
import random

import pytest

from d2det_platform.train.plan import (
    BatchPlan,
    RankSpeed,
    best_plan,
    equal_plan,
    replan,
    step_time,
)


def speeds_of(*values: float, cap: int = 1000) -> list[RankSpeed]:
    return [RankSpeed(value, cap) for value in values]


@pytest.mark.parametrize("seed", range(20))
def test_best_plan_is_optimal_against_all_splits(seed: int) -> None:
    choose = random.Random(seed)
    speeds = [RankSpeed(choose.uniform(0.5, 8), choose.randint(1, 6)) for _ in range(3)]
    batch = choose.randint(1, sum(speed.max_images for speed in speeds))
    every = (
        BatchPlan(counts)
        for counts in itertools.product(*(range(s.max_images + 1) for s in speeds))
        if sum(counts) == batch
    )
    best = min(step_time(plan, speeds) for plan in every)
    assert step_time(best_plan(batch, speeds), speeds) == best


def test_a_three_times_slower_rank_gets_a_third() -> None:
    assert best_plan(16, speeds_of(3.0, 1.0)).images_per_rank == (12, 4)


def test_memory_limits_bind() -> None:
    speeds = [RankSpeed(9.0, 2), RankSpeed(1.0, 10)]
    assert best_plan(8, speeds).images_per_rank == (2, 6)
    with pytest.raises(ValueError, match="does not fit"):
        best_plan(13, speeds)


def test_small_gains_do_not_move_pictures() -> None:
    plan = best_plan(100, speeds_of(1.0, 1.0))
    assert replan(plan, speeds_of(1.03, 0.99)) is plan
    assert replan(plan, speeds_of(2.0, 1.0)).images_per_rank == (67, 33)


@pytest.mark.parametrize("counts", [(6,), (3, 3), (4, 2), (3, 2, 1), (6, 0), (0, 1, 5)])
@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_slices_cut_every_batch_into_consecutive_parts(counts: tuple[int, ...], size: int) -> None:
    plan = BatchPlan(counts)
    parts = [list(range(size))[plan.slice(rank, size)] for rank in range(len(counts))]
    assert list(itertools.chain(*parts)) == list(range(size))


def test_a_full_batch_is_cut_exactly_as_planned() -> None:
    plan = BatchPlan((4, 0, 2))
    assert [plan.slice(rank, 6) for rank in range(3)] == [slice(0, 4), slice(4, 4), slice(4, 6)]


def test_equal_plan_sums_to_the_batch() -> None:
    assert equal_plan(7, 3).images_per_rank == (3, 2, 2)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_a_speed_must_be_positive(bad: float) -> None:
    with pytest.raises(ValueError, match="images_per_s"):
        RankSpeed(bad, 1)
