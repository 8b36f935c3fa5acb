"""Ragged rows expand in order."""

import doctest

import numpy as np

from d2det import ragged


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(ragged).attempted == 1
    assert doctest.testmod(ragged).failed == 0


def test_empty_rows_and_no_rows_are_fine() -> None:
    owner, value = ragged.ragged(np.array([3, 7, 9]), np.array([0, 2, 0]))
    assert owner.tolist() == [1, 1]
    assert value.tolist() == [7, 8]
    assert not len(ragged.ragged(np.empty(0, np.int64), np.empty(0, np.int64))[0])
