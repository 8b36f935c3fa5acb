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


def test_pictures_of_similar_shape_go_together():
    pictures = sizes(2000)
    shape = np.log(pictures[:, 1] / pictures[:, 0])
    steps = epoch_batches(pictures, global_batch=8, seed=0, epoch=0)
    spread = np.mean([np.ptp(shape[step]) for step in steps])
    anyhow = np.mean([np.ptp(shape[i : i + 8]) for i in range(0, 2000, 8)])
    assert spread < anyhow / 5


def test_company_changes_from_epoch_to_epoch():
    pictures = sizes(400)
    pairs = []
    for epoch in range(2):
        steps = epoch_batches(pictures, global_batch=4, seed=0, epoch=epoch)
        pairs.append({(a, b) for step in steps for a in step.tolist() for b in step.tolist()})
    again = len(pairs[0] & pairs[1]) - 400
    assert again < 0.2 * (len(pairs[0]) - 400)


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
