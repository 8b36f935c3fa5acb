"""Drawing: nothing outside the objects changes, and no object however odd breaks it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from d2det.structures import Detections, Rle
from d2det.visualize import (
    DrawingStyle,
    class_colour,
    draw_detections,
    draw_masks,
    draw_objects,
    fit,
    grid,
)

QUIET = DrawingStyle(labels="none")
NAMES = ("ship", "plane", "ünïcode ✈ name")


def _grey(height: int = 120, width: int = 160) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def _rle(mask: np.ndarray) -> Rle:
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return Rle(size=mask.shape, counts=code["counts"])


def test_the_given_picture_is_left_as_it_is() -> None:
    image = _grey()
    drawn = draw_objects(image, np.array([[10, 10, 60, 60.0]]), [0], NAMES)
    assert (image == 90).all()
    assert drawn.shape == image.shape
    assert (drawn != 90).any()


def test_a_box_changes_its_outline_only() -> None:
    drawn = draw_objects(_grey(), np.array([[20, 30, 100, 90.0]]), [1], NAMES, style=QUIET)
    changed = (drawn != 90).any(2)
    assert changed[30, 20:100].all()
    assert changed[89, 20:100].all()
    assert changed[30:90, 99].all()
    assert not changed[40:80, 30:90].any()
    changed[25:95, 15:105] = False
    assert not changed.any()


def test_a_mask_tints_its_own_pixels_only() -> None:
    mask = np.zeros((120, 160), bool)
    mask[40:60, 50:90] = True
    style = DrawingStyle(labels="none", mask_opacity=0.5, line_width=1)
    drawn = draw_objects(
        _grey(), np.array([[45, 35, 95, 65.0]]), [2], NAMES, masks=[_rle(mask)], style=style
    )
    expected = 45 + np.array(class_colour(2)) / 2
    assert np.abs(drawn[45:55, 55:85] - expected).max() <= 1
    assert (drawn[62, 60:80] == 90).all()


def test_the_first_mask_lies_on_top_and_sizes_must_fit() -> None:
    everywhere = _rle(np.ones((120, 160), bool))
    drawn = draw_masks(_grey(), [everywhere] * 2, [(0, 0, 0), (255, 255, 255)], opacity=1.0)
    assert (drawn[20:100, 20:140] == 0).all()
    with pytest.raises(ValueError, match="mask of size"):
        draw_masks(_grey(50, 50), [everywhere], [(0, 0, 0)])


@pytest.mark.parametrize(
    "boxes",
    [
        [],
        [[-500, -500, 900, 900]],
        [[200, 200, 300, 300]],
        [[50, 50, 50, 50]],
        [[60, 60, 40, 40]],
        [[float("nan")] * 4],
        [[1e12, 1e12, 2e12, 2e12]],
        [[n, n, n + 30, n + 30] for n in range(80)],
    ],
    ids=["none", "larger", "outside", "empty", "inverted", "nan", "huge", "many"],
)
@pytest.mark.parametrize("labels", ["auto", "all", "none"])
@pytest.mark.parametrize("size", [(120, 160), (3, 2), (1, 1)], ids=str)
def test_odd_boxes_are_drawn_or_left_out_without_an_error(boxes, labels, size) -> None:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    classes = [n % 3 for n in range(len(boxes))]
    image = _grey(*size)
    drawn = draw_objects(image, array, classes, NAMES, style=DrawingStyle(labels=labels))
    assert drawn.shape == image.shape


def test_labels_that_do_not_fit_go_to_a_legend() -> None:
    boxes = np.array([[x, y, x + 6, y + 6] for x in range(0, 300, 12) for y in range(0, 300, 12)])
    image = _grey(400, 400)
    many = draw_objects(image, boxes, [0] * len(boxes), NAMES)
    quiet = draw_objects(image, boxes, [0] * len(boxes), NAMES, style=QUIET)
    assert ((many != quiet).any(2).sum()) > 300


def test_detections_below_the_score_are_left_out() -> None:
    mask = np.zeros((120, 160), bool)
    found = Detections(
        boxes=torch.tensor([[10.0, 10, 50, 50], [60, 60, 90, 90]]),
        scores=torch.tensor([0.9, 0.2]),
        labels=torch.tensor([0, 1]),
        size=(120, 160),
        masks=(_rle(mask), _rle(~mask)),
        mask_scores=torch.tensor([0.9, 0.2]),
    )
    drawn = draw_detections(_grey(), found, NAMES, min_score=0.5)
    assert (drawn[70:88, 70:88] == 90).all()
    assert (draw_detections(_grey(), found, NAMES)[70:88, 70:88] != 90).any(2).all()


def test_first_dozen_classes_have_colours_far_apart() -> None:
    colours = np.array([class_colour(k) for k in range(12)], float)
    distance = np.abs(colours[:, None] - colours[None]).sum(2) + 1000 * np.eye(12)
    assert distance.min() > 60


@pytest.mark.parametrize("image", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3), np.float32)])
def test_other_than_colour_pictures_are_refused(image) -> None:
    with pytest.raises(ValueError, match="must be"):
        draw_objects(image, np.zeros((0, 4)), [], NAMES)


def test_grid_keeps_every_picture_and_its_shape() -> None:
    red, blue = np.zeros((40, 80, 3), np.uint8), np.zeros((300, 10, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    page = grid([[red, blue], [blue]], titles=("truth", "found"), cell=(100, 100), gap=10)
    assert page.shape == (34 + 2 * 110 + 10, 230, 3)
    is_red = (page == (255, 0, 0)).all(2)
    assert is_red.sum() == 50 * 100
    assert fit(blue, (100, 100)).shape == (100, 3, 3)
