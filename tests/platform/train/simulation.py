"""64 ranks of four kinds of GPU, with noise, a throttled one and a drifting one.

`python -m tests.platform.train.simulation` prints a table.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from d2det_platform.train.balance import Balance
from d2det_platform.train.options import ClusterOptions, DataOptions, TrainOptions
from d2det_platform.train.plan import BatchPlan, RankSpeed, best_plan, step_time

RANKS = 64
TYPES = (9.0, 4.0, 2.5, 1.0)
"""Images/s of four kinds of GPU."""
NOISE = 0.03
"""Deviation of one measured speed."""
SETTLING = 4
"""Looks after a change of speed in which the policy may still learn."""


@dataclass
class Simulated:
    """What became of a simulated run.

    losses: share of time lost at every look to the best split by the true speeds.
    changes: looks at which the plan changed.
    reversals: changes, while no speed changed, that made the true step longer.
    """

    losses: list[float] = field(default_factory=list)
    changes: list[int] = field(default_factory=list)
    reversals: int = 0

    @property
    def mean_loss(self) -> float:
        """The mean of `losses`."""
        return sum(self.losses) / len(self.losses)


def simulate(seed: int, *, images_per_rank: int, looks: int = 400) -> Simulated:
    """Runs the balance of a training for `looks` measurements of all ranks."""
    choose = random.Random(seed)
    base = [TYPES[rank % 4] * choose.uniform(0.95, 1.05) for rank in range(RANKS)]
    global_batch = RANKS * images_per_rank
    balance = Balance(_options(global_batch), {}, [str(rank) for rank in range(RANKS)])
    balance.begin(_speeds(_measured(base, choose), global_batch))
    run, changed_at = Simulated(), 0
    for look in range(looks):
        true = _true(base, look)
        changed_at = look if true != _true(base, look - 1) else changed_at
        before = balance.plan
        balance.update(_measured(true, choose))
        exact = _speeds(true, global_batch)
        if balance.plan != before:
            run.changes.append(look)
            is_settled = look > changed_at + SETTLING
            run.reversals += is_settled and _is_worse(balance.plan, before, exact)
        run.losses.append(
            step_time(balance.plan, exact) / step_time(best_plan(global_batch, exact), exact) - 1
        )
    return run


def _is_worse(plan: BatchPlan, before: BatchPlan, exact: list[RankSpeed]) -> bool:
    return step_time(plan, exact) > step_time(before, exact)


def _true(base: list[float], look: int) -> list[float]:
    speeds = list(base)
    if 100 <= look < 250:
        speeds[5] *= 0.6  # throttles, and recovers
    if look >= 150:
        speeds[8] *= 1 - 0.3 * min((look - 150) / 100, 1)  # drifts slowly
    return speeds


def _measured(speeds: list[float], choose: random.Random) -> list[float]:
    return [speed * choose.lognormvariate(0, NOISE) for speed in speeds]


def _speeds(values: list[float], global_batch: int) -> list[RankSpeed]:
    return [RankSpeed(value, global_batch) for value in values]


def _options(global_batch: int) -> TrainOptions:
    options = TrainOptions(
        data=DataOptions(train_images="-", train_annotations="-"),
        cluster=ClusterOptions(workers=RANKS),
    )
    train = options.train.model_copy(update={"global_batch": global_batch})
    return options.model_copy(update={"train": train})


if __name__ == "__main__":
    for images in (8, 16, 32):
        for seed in range(4):
            run = simulate(seed, images_per_rank=images)
            print(
                f"{images} images a rank, seed {seed}: {run.mean_loss:.2%} lost, worst "
                f"{max(run.losses):.1%}, {len(run.changes)} changes {run.changes}, "
                f"{run.reversals} reversals"
            )
