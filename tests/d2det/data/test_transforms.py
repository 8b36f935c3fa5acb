import cv2
import numpy as np
import pycocotools.mask
import pytest

from d2det import rng
from d2det.config import InputConfig, TrainConfig
from d2det.data.samples import Sample
from d2det.data.transforms import draw_input, training_example
from tests.d2det.data.test_masks import paint

INPUT = InputConfig(short_side=96, long_side=160)


def sample(boxes, *, height=60, width=80, masks=None):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return Sample(pixels, 7, array, np.arange(len(array)), masks)


def always(*, across=False, down=False):
    return TrainConfig(flip=float(across), vertical_flip=float(down))


def test_resizing_is_that_of_the_official_pipeline():
    given = sample([[10, 20, 30, 50]])
    image, target = training_example(given, INPUT, always(), key=0)
    assert image.shape == (96, 128, 3)
    assert np.array_equal(image, cv2.resize(given.image, (128, 96)))
    scale = 1.6
    x1, y1, x2, y2 = np.array([10, 20, 29, 49]) * scale  # x2, y2 are covered pixels there
    np.testing.assert_allclose(target.boxes[0], [x1, y1, x2 + 1, y2 + 1], rtol=1e-6)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("down", [False, True])
def test_boxes_and_masks_move_with_the_pixels(across, down):
    """An object painted into the picture is still where its box and mask say."""
    canvas = np.zeros((60, 80), np.uint8)
    canvas[20:50, 10:30] = 1
    canvas[20:30, 10:15] = 0
    masks = (pycocotools.mask.encode(np.asfortranarray(canvas))["counts"],)
    given = sample([[10, 20, 30, 50]], masks=masks)
    given.image[:] = canvas[:, :, None] * 255
    config = InputConfig(short_side=60, long_side=80)  # no resize
    image, target = training_example(given, config, always(across=across, down=down), key=0)
    x1, y1, x2, y2 = target.boxes[0].int().tolist()
    inside = np.zeros_like(canvas)
    inside[y1:y2, x1:x2] = 1
    assert (image[..., 0] > 0).sum() == (inside & (image[..., 0] > 0)).sum()
    assert np.array_equal(paint(target.masks, 60, 80)[0], image[..., 0] // 255)


def test_mirroring_twice_is_no_mirroring():
    given = sample([[10, 20, 30, 50], [0, 0, 80, 60], [70.5, 3, 80, 9]])
    _, plain = training_example(given, INPUT, always(), key=0)
    _, turned = training_example(given, INPUT, always(across=True, down=True), key=0)
    back = np.array([128, 96, 128, 96]) - turned.boxes.numpy()[:, [2, 3, 0, 1]]
    np.testing.assert_allclose(back, plain.boxes, atol=1e-4)


@pytest.mark.parametrize(
    "box",
    [
        [10, 10, 10, 20],
        [10, 10, 20, 10],
        [10, 10, 10.5, 20],
        [-20, -20, -5, -5],
        [80, 10, 90, 20],
        [79.5, 10, 120, 20],
        [-10, 10, 0.5, 30],
        [10, 500, 20, 600],
    ],
)
def test_objects_without_a_visible_pixel_are_dropped(box):
    masks = (pycocotools.mask.encode(np.zeros((60, 80), np.uint8, order="F"))["counts"],) * 2
    given = sample([box, [10, 20, 30, 50]], masks=masks)
    _, target = training_example(given, INPUT, always(), key=0)
    assert target.labels.tolist() == [1]
    assert len(target.masks) == 1


def test_boxes_are_cut_to_the_input():
    _, target = training_example(sample([[-30, 20, 300, 50]]), INPUT, always(), key=0)
    assert target.boxes[0, [0, 2]].tolist() == [0, 128]


def test_a_picture_without_objects_is_a_sound_example():
    _, target = training_example(sample([], masks=()), INPUT, always(across=True), key=0)
    assert target.boxes.shape == (0, 4)
    assert len(target.masks) == 0


def test_augmentation_depends_on_the_key_alone():
    given, train = sample([[10, 20, 30, 50]]), TrainConfig(flip=0.5, vertical_flip=0.5)
    results = {}
    for image_id in range(40):
        key = rng.key(0, 0, image_id)
        first, again = (training_example(given, INPUT, train, key) for _ in range(2))
        assert np.array_equal(first[0], again[0])
        results[first[0].tobytes()] = first
    assert len(results) == 4


def test_multi_scale_keeps_the_proportion_of_the_sides():
    train = TrainConfig(short_sides=(64, 128))
    drawn = [draw_input(INPUT, train, key) for key in range(300)]
    shorts = np.array([config.short_side for config in drawn])
    assert shorts.min() == 64
    assert shorts.max() == 128
    assert abs(shorts.mean() - 96) < 4
    assert all(abs(c.long_side / c.short_side - 160 / 96) < 0.02 for c in drawn)
    assert draw_input(INPUT, TrainConfig(), 3) == INPUT
