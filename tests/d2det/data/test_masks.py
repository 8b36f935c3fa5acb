import cv2
import numpy as np
import pycocotools.mask
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2det import rle
from d2det.data.masks import (
    encode_crop,
    encode_segmentation,
    mask_areas,
    mask_bounds,
    rasterise,
)
from d2det.structures import CroppedMasks


def paint(masks: CroppedMasks, height: int, width: int) -> np.ndarray:
    """(G, H, W) canvases; whatever lies outside them is an error."""
    canvas = np.zeros((len(masks), height, width), np.uint8)
    for plane, (x, y, w, h), start in zip(
        canvas, masks.rectangles.tolist(), masks.starts.tolist(), strict=True
    ):
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height
        plane[y : y + h, x : x + w] = masks.pixels[start : start + w * h].numpy().reshape(h, w)
    return canvas


def reference(segmentation: object, height: int, width: int) -> np.ndarray:
    """pycocotools' own pixels."""
    rles = pycocotools.mask.frPyObjects(segmentation, height, width)
    rle = pycocotools.mask.merge(rles) if isinstance(rles, list) else rles
    return pycocotools.mask.decode(rle)


coordinate = st.one_of(
    st.floats(-20, 90).map(lambda x: round(x, 2)), st.integers(-5, 80), st.floats(-20, 90)
)
polygon = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=9).map(
    lambda points: [value for point in points for value in point]
)


@settings(max_examples=150, deadline=None)
@given(
    objects=st.lists(st.lists(polygon, min_size=1, max_size=3), max_size=5),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
)
def test_polygons_have_the_pixels_of_pycocotools(objects, height, width):
    strings = [encode_segmentation(rings, height, width) for rings in objects]
    masks = paint(rasterise(strings, height, width), height, width)
    expected = [reference(rings, height, width) for rings in objects]
    assert all(np.array_equal(m, e) for m, e in zip(masks, expected, strict=True))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    mirrored=st.tuples(st.booleans(), st.booleans()),
)
def test_resized_and_mirrored_masks_equal_those_of_the_canvas(seed, height, width, size, mirrored):
    random = np.random.default_rng(seed)
    canvases = [
        (random.random((height, width)) < density).astype(np.uint8)
        for density in (0, 0.02, 0.5, 0.98, 1)
    ]
    canvases[3][: height // 2] = 0
    strings = [pycocotools.mask.encode(np.asfortranarray(c))["counts"] for c in canvases]
    masks = paint(rasterise(strings, height, width, size=size, mirrored=mirrored), *size)
    for mask, canvas in zip(masks, canvases, strict=True):
        expected = cv2.resize(canvas, size[::-1], interpolation=cv2.INTER_NEAREST)
        expected = expected[:: -1 if mirrored[1] else 1, :: -1 if mirrored[0] else 1]
        assert np.array_equal(mask, expected)


def test_rectangles_hug_the_objects():
    canvas = np.zeros((50, 60), np.uint8)
    canvas[10:14, 20:27] = 1
    strings = [pycocotools.mask.encode(np.asfortranarray(canvas))["counts"]]
    assert rasterise(strings, 50, 60).rectangles.tolist() == [[20, 10, 7, 4]]


def test_areas_and_bounds_are_those_of_the_pixels():
    canvas = np.zeros((50, 60), np.uint8)
    canvas[10:14, 20:27] = 1
    canvas[11, 22] = 0
    strings = [
        pycocotools.mask.encode(np.asfortranarray(c))["counts"] for c in (canvas, canvas * 0)
    ]
    assert mask_areas(strings).tolist() == [27, 0]
    assert mask_bounds(strings, np.array([50, 50])).tolist() == [[20, 10, 7, 4], [0, 0, 1, 1]]


def test_compressed_and_uncompressed_run_lengths_and_polygons_agree():
    polygons = [[3.0, 4.0, 30.5, 6.0, 18.0, 33.3]]
    canvas = reference(polygons, 40, 50)
    compressed = pycocotools.mask.encode(np.asfortranarray(canvas))["counts"]
    runs = {"size": [40, 50], "counts": rle.read_counts(compressed).tolist()}
    text = {"size": [40, 50], "counts": compressed.decode()}
    assert encode_segmentation(polygons, 40, 50) == compressed
    assert encode_segmentation(runs, 40, 50) == compressed
    assert encode_segmentation(text, 40, 50) == compressed


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    crop=st.tuples(st.integers(0, 11), st.integers(0, 11), st.integers(1, 12), st.integers(1, 12)),
    density=st.sampled_from([0, 0.1, 0.6, 1]),
)
def test_crops_are_encoded_as_their_canvas_would_be(seed, size, crop, density):
    (height, width), (x, y, w, h) = size, crop
    x, y = min(x, width - 1), min(y, height - 1)
    w, h = min(w, width - x), min(h, height - y)
    mask = np.random.default_rng(seed).random((h, w)) < density
    canvas = np.zeros((height, width), np.uint8, order="F")
    canvas[y : y + h, x : x + w] = mask
    assert encode_crop(mask, x, y, height, width) == pycocotools.mask.encode(canvas)["counts"]


@pytest.mark.parametrize("segmentation", [None, [], "", "[]"])
def test_ways_to_say_no_mask(segmentation):
    assert encode_segmentation(segmentation, 10, 10) == b""


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ("polygon", "neither polygons nor run lengths"),
        (7, "neither"),
        ([1, 2, 3, 4, 5, 6], "where a polygon's list belongs"),
        ([[]], "0 numbers"),
        ([[1, 2, 3, 4]], "3 or more"),
        ([[1, 2, 3, 4, 5, 6, 7]], "7 numbers"),
        ([[1, 2, float("nan"), 4, 5, 6]], "nan"),
        ([[1, 2, float("inf"), 4, 5, 6]], "inf"),
        ([[1, 2, "3", 4, 5, 6]], "'3'"),
        ([[1, 2, True, 4, 5, 6]], "True"),
        ([[1, 2, 1e12, 4, 5, 6]], "far outside"),
        ({"size": [10, 11], "counts": [110]}, "size"),
        ({"size": [10, 10]}, "counts None"),
        ({"size": [10, 10], "counts": [99]}, "sum to 99"),
        ({"size": [10, 10], "counts": [-1, 101]}, "-1"),
        ({"size": [10, 10], "counts": [50.0, 50]}, "50.0"),
        ({"size": [10, 10], "counts": ""}, "compressed string"),
        ({"size": [10, 10], "counts": "not run lengths"}, "compressed string"),
        ({"size": [10, 10], "counts": "oooooooooo0"}, "35 bits"),
        ({"size": [10, 10], "counts": "45"}, "sum to 9"),
        ({"size": [10, 10], "counts": "o"}, "compressed string"),
    ],
)
def test_broken_segmentations_are_refused_with_the_reason(segmentation, reason):
    with pytest.raises(ValueError, match=reason):
        encode_segmentation(segmentation, 10, 10)


def test_no_objects_give_no_masks():
    masks = rasterise([], 10, 10, size=(20, 20))
    assert len(masks) == 0
    assert masks.pixels.shape == (0,)
