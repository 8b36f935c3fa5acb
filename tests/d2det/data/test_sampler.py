import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2det.data.sampler import epoch_batches, steps_per_epoch


def sizes(count, seed=0):
    return np.random.default_rng(seed).integers(10, 90, (count, 2))


@given(count=st.integers(0, 60), batch=st.integers(1, 17), epoch=st.integers(0, 3))
def test_every_picture_comes_exactly_once_an_epoch(count, batch, epoch):
    steps = epoch_batches(sizes(count), global_batch=batch, seed=1, epoch=epoch)
    assert sorted(np.concatenate([np.zeros(0, int), *steps])) == list(range(count))
    assert len(steps) == steps_per_epoch(count, batch)
    assert all(len(step) == batch for step in steps[:-1])


def test_steps_are_of_one_orientation_but_for_the_rest():
    pictures = sizes(1000)
    steps = epoch_batches(pictures, global_batch=8, seed=0, epoch=0)
    mixed = [len({bool(h < w) for h, w in pictures[step]}) > 1 for step in steps]
    assert sum(mixed) <= 2
    assert not any(mixed[:-2])


def test_order_is_a_pure_function_of_seed_and_epoch():
    def order(seed, epoch):
        return np.concatenate(
            epoch_batches(sizes(50), global_batch=4, seed=seed, epoch=epoch)
        ).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_a_picture_falls_into_any_step():
    """The place of one picture over many epochs is spread over the whole epoch."""
    places = []
    for epoch in range(400):
        steps = epoch_batches(sizes(40), global_batch=4, seed=0, epoch=epoch)
        places.append(next(i for i, step in enumerate(steps) if 7 in step))
    counts = np.bincount(places, minlength=10)
    assert counts.min() > 15


def test_a_global_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="got 0"):
        epoch_batches(sizes(3), global_batch=0, seed=0, epoch=0)
