import itertools
import random

import pytest

from d2det_platform.train.plan import (
    BatchPlan,
    RankSpeed,
    best_plan,
    replan,
    step_time,
    stragglers,
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


def test_a_share_in_several_passes_costs_a_third_more() -> None:
    small = RankSpeed(1.0, 100, images_per_pass=4)
    assert (small.seconds(4), small.seconds(6)) == (4.0, 8.0)
    # Room for 4 at once: more go to the other rank although it is slower than a pass here.
    assert best_plan(8, [small, RankSpeed(0.8, 100)]).images_per_rank == (4, 4)


def test_who_is_waited_for_is_named() -> None:
    plan = BatchPlan((4, 4, 4, 0))
    assert stragglers(plan, speeds_of(1.0, 1.1, 0.6, 1.0)) == (2,)
    assert stragglers(plan, speeds_of(1.0, 1.1, 0.95, 1.0)) == ()
