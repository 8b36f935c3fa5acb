"""Run-length masks equal pycocotools on the same pixels."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from d2det import rle

masks = st.builds(
    lambda height, width, seed, fill: np.random.default_rng(seed).random((height, width)) < fill,
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
)


def encode(mask: np.ndarray) -> rle.Rle:
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": tuple(encoded["size"]), "counts": encoded["counts"]}


@given(masks)
@settings(deadline=None)
def test_reading_and_writing_are_inverse_and_areas_count(mask: np.ndarray) -> None:
    encoded = encode(mask)
    assert rle.write_counts(rle.read_counts(encoded["counts"])) == encoded["counts"]
    assert rle.from_intervals(rle.to_intervals(encoded), encoded["size"]) == encoded
    assert rle.area(encoded) == mask.sum()


@given(masks, st.integers(0, 2**32))
@settings(deadline=None)
def test_union_is_that_of_the_pixels(mask: np.ndarray, seed: int) -> None:
    others = np.random.default_rng(seed).random((2, *mask.shape)) < 0.2
    pieces = [encode(m) for m in (mask, *others)]
    assert rle.union(pieces) == encode(mask | others[0] | others[1])
    assert rle.union(pieces[::-1]) == rle.union(pieces)


@given(masks, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
@settings(deadline=None)
def test_place_is_pasting_onto_the_scene(
    mask: np.ndarray, x: int, y: int, right: int, below: int
) -> None:
    scene = np.pad(mask, ((y, below), (x, right)))
    assert rle.place(encode(mask), x, y, scene.shape) == encode(scene)


@pytest.mark.parametrize("side", [100, 60_000, 1_000_000])
def test_scenes_beyond_32_bit_pixel_numbers_keep_their_masks(side: int) -> None:
    mask = encode(np.ones((3, 4), bool))
    placed = rle.place(mask, side - 4, side - 3, (side, side))
    assert rle.area(placed) == 12
    assert rle.to_intervals(placed)[-1].tolist() == [side * side - 3, side * side]
    assert rle.read_counts(placed["counts"]).sum() == side * side


@given(st.lists(masks, max_size=5))
@settings(deadline=None)
def test_reading_many_is_reading_each(several: list[np.ndarray]) -> None:
    texts = [encode(mask)["counts"] for mask in several]
    runs, begins = rle.read_many(texts)
    assert begins.tolist() == np.cumsum([0, *(len(rle.read_counts(t)) for t in texts)]).tolist()
    for text, (begin, end) in zip(texts, pairwise(begins.tolist()), strict=True):
        assert np.array_equal(runs[begin:end], rle.read_counts(text))
