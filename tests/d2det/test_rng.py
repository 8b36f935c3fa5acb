import numpy as np
import torch
from torch import Tensor

from d2det import rng


def first(count: int, *, key: int) -> Tensor:
    return rng.uniform(torch.arange(count), torch.tensor(key))


def test_numbers_depend_on_the_key_and_index_alone() -> None:
    long, short = first(1000, key=7), first(10, key=7)
    assert torch.equal(long[:10], short)
    assert not torch.equal(first(10, key=8), short)
    both = rng.uniform(torch.tensor([3, 900]), torch.tensor([[7], [8]]))
    assert torch.equal(both[0], long[[3, 900]])
    assert torch.equal(both[1], first(901, key=8)[[3, 900]])


def test_numbers_are_uniform_and_uncorrelated_between_neighbouring_keys() -> None:
    draws = torch.stack([first(4096, key=k) for k in range(64)])
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.002
    assert abs(draws.std() - (1 / 12) ** 0.5) < 0.002
    correlation = np.corrcoef(draws.numpy())
    assert np.abs(correlation - np.eye(64)).max() < 0.08


def test_splitmix64_matches_its_published_sequence() -> None:
    """Seed 0: first outputs of splitmix64.c by Sebastiano Vigna."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    got = first(3, key=0)
    assert got.tolist() == [(value >> 11) * 2.0**-53 for value in expected]


def test_keys_tell_numbers_from_strings_and_order_from_sets() -> None:
    assert len({rng.key(1, 2), rng.key(2, 1), rng.key("1", 2), rng.key(12), rng.key(1)}) == 5
