"""Windows cover a scene, and what is found in them lands where it belongs."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2det import rle
from d2det.inference.windows import ArrayScene, Window, cut_windows, predict_windows
from d2det.structures import Detections
from tests.d2det.inference.scenes import filled


@given(st.integers(1, 300), st.integers(1, 300), st.integers(9, 120), st.integers(0, 119))
@settings(deadline=None)
def test_windows_cover_the_scene_and_overlap_enough(
    height: int, width: int, tile: int, overlap: int
) -> None:
    overlap = min(overlap, tile - 4)
    windows = cut_windows((height, width), tile=tile, overlap=overlap)
    covered = np.zeros((height, width), bool)
    for w in windows:
        covered[w.y : w.y + w.height, w.x : w.x + w.width] = True
        assert (w.height, w.width) == (min(tile, height), min(tile, width))
        assert w.y + w.height <= height
        assert w.x + w.width <= width
    assert covered.all()
    assert windows == sorted(set(windows))
    columns = sorted({w.x for w in windows})
    assert all(a + tile - b >= overlap for a, b in pairwise(columns))


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        pytest.param(500, [0], id="smaller than a tile"),
        pytest.param(800, [0], id="one tile"),
        pytest.param(801, [0, 1], id="last one moved inside"),
        pytest.param(2000, [0, 600, 1200], id="exact fit"),
        pytest.param(2001, [0, 600, 1200, 1201], id="one pixel more"),
    ],
)
def test_positions(length: int, expected: list[int]) -> None:
    assert [w.x for w in cut_windows((800, length), tile=800, overlap=200)] == expected


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (100, 100), (100, -1)])
def test_windows_that_do_not_advance_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="tile"):
        cut_windows((10, 10), tile=tile, overlap=overlap)


def bright_spots(images: list[np.ndarray]) -> list[Detections]:
    """A detector of the one rectangle of bright pixels in a picture."""
    found = []
    for image in images:
        y, x = np.nonzero(image[..., 0] > 200)
        box = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else None
        found.append(
            Detections(
                boxes=torch.tensor([box] if box else [], dtype=torch.float32).reshape(-1, 4),
                scores=torch.ones(1 if box else 0),
                labels=torch.zeros(1 if box else 0, dtype=torch.int64),
                size=image.shape[:2],
                masks=(filled(box, image.shape[:2]),) if box else (),
                mask_scores=torch.ones(1 if box else 0),
            )
        )
    return found


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_detections_of_windows_come_in_the_frame_of_the_scene(batch: int) -> None:
    pixels = np.zeros((90, 130, 3), np.uint8)
    pixels[40:60, 70:85] = 255
    windows = cut_windows((90, 130), tile=50, overlap=25)
    results = list(predict_windows(bright_spots, ArrayScene(pixels), windows, batch=batch))
    assert [r.window for r in results] == windows
    seen = [r.found for r in results if len(r.found)]
    assert len(seen) > 1
    for found in seen:
        x1, y1, x2, y2 = found.boxes[0].tolist()
        assert 70 <= x1 < x2 <= 85
        assert 40 <= y1 < y2 <= 60
        assert found.size == found.masks[0]["size"] == (90, 130)
        assert rle.area(found.masks[0]) == (x2 - x1) * (y2 - y1)


def test_windows_sort_row_by_row() -> None:
    assert Window(0, 5, 9, 9) < Window(1, 0, 9, 9)
