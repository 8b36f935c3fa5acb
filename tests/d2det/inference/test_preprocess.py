"""The network input equals the official pipeline's, bit for bit."""

import zlib

import numpy as np
import pytest
import torch

from d2det.config import InputConfig
from d2det.inference.preprocess import (
    padded_size,
    resize_image,
    resize_scale,
    resized_size,
    to_batch,
)
from tests.oracle.make_picture import make_picture

# Checksums of the official pipeline's stages for the generated picture (mmcv 0.4.3 semantics).
PICTURE_CRC, RESIZED_CRC, INPUT_CRC = 3200051291, 721237131, 1190470894


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_generated_picture_becomes_the_official_input() -> None:
    picture = make_picture()
    assert zlib.crc32(picture.tobytes()) == PICTURE_CRC
    size = resized_size(*picture.shape[:2], 400, 667)
    resized = resize_image(np.ascontiguousarray(picture[..., ::-1]), size)
    assert zlib.crc32(np.ascontiguousarray(resized[..., ::-1]).tobytes()) == RESIZED_CRC
    batch = to_batch([resized], InputConfig())
    assert batch.pixels.shape == (1, 3, 416, 608)
    assert batch.sizes.tolist() == [[400, 600]]
    assert zlib.crc32(batch.pixels.numpy().tobytes()) == INPUT_CRC


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        pytest.param((320, 480), (800, 1200), id="short side rules"),
        pytest.param((480, 320), (1200, 800), id="portrait"),
        pytest.param((300, 900), (444, 1333), id="long side rules"),
        pytest.param((800, 1333), (800, 1333), id="nothing to do"),
        pytest.param((3000, 4000), (800, 1067), id="shrinks"),
        pytest.param((1, 5000), (1, 1333), id="a side never vanishes"),
    ],
)
def test_resized_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_size(*size, 800, 1333) == expected


def test_scale_is_one_number_for_both_axes() -> None:
    assert resize_scale(300, 900, 800, 1333) == 1333 / 900


def test_padding_goes_to_the_next_multiple_of_32() -> None:
    assert padded_size(32, 33) == (32, 64)


def test_a_picture_is_the_same_input_beside_any_neighbour() -> None:
    images = [noise(40, 70), noise(90, 33, seed=1)]
    batch = to_batch(images, InputConfig())
    for slot, image in zip(batch.pixels, images, strict=True):
        alone = to_batch([image], InputConfig()).pixels[0]
        height, width = alone.shape[1:]
        assert torch.equal(slot[:, :height, :width], alone)
        assert not slot[:, height:].any()
        assert not slot[:, :, width:].any()


def test_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        to_batch([], InputConfig())
