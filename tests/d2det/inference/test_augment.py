"""Test-time augmentation: one plain view is the plain result, and views meet in one frame."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from d2det.config import InputConfig, RegressionConfig
from d2det.inference.augment import View, detect_views, make_views
from d2det.models.detector import D2Det
from tests.d2det.inference.test_predictor import picture
from tests.d2det.models.small import CONFIG, small_detector

INPUT = InputConfig(short_side=64, long_side=96, tta_factors=(0.5, 1.5))
CONFIGS = [
    pytest.param(CONFIG, id="dense regression and masks"),
    pytest.param(
        CONFIG.model_copy(
            update={"regression": RegressionConfig(kind="delta", hidden=16), "mask": None}
        ),
        id="box deltas",
    ),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_one_plain_view_is_the_plain_result(config) -> None:
    model = small_detector(config)
    views = make_views(picture(50, 70), INPUT)
    found = detect_views(model, views[:1])
    (plain,) = model.detect(views[0].images)
    assert len(found) > 0
    for field in ("boxes", "scores", "labels", "masks", "mask_scores"):
        a, b = getattr(found, field), getattr(plain, field)
        assert (a is b is None) or torch.equal(a, b)
    assert found.size == plain.size


def test_the_same_view_twice_changes_nothing_but_rounding() -> None:
    model = small_detector()
    plain = make_views(picture(50, 70), INPUT)[0]
    once, twice = detect_views(model, [plain]), detect_views(model, [plain, plain])
    # Pooled proposals are thinned across levels, so matches, not positions, are compared.
    distance = torch.cdist(once.boxes, twice.boxes).min(1).values
    assert (distance < 1e-3).float().mean() > 0.5


def test_views_are_sizes_and_mirrors_of_the_picture() -> None:
    views = make_views(picture(50, 70), INPUT)
    assert [(view.ratio, view.mirrored) for view in views] == [
        (1.0, False),
        (1.0, True),
        (0.5, False),
        (0.5, True),
        (1.5, False),
        (1.5, True),
    ]
    assert [view.size for view in views[::2]] == [(64, 90), (32, 45), (96, 134)]
    plain, mirrored = views[0].images.pixels[..., :90], views[1].images.pixels[..., :90]
    assert torch.equal(plain, mirrored.flip(-1))


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("mirrored", [False, True])
def test_boxes_go_to_a_view_and_back(ratio: float, mirrored: bool) -> None:
    plain = make_views(picture(50, 70), INPUT)[0]
    view = replace(plain, ratio=ratio, mirrored=mirrored)
    boxes = torch.tensor([[3.0, 4, 20, 30], [0, 0, 90, 64], [-5, 2, 1, 3]])
    assert torch.allclose(view.to_reference(view.from_reference(boxes)), boxes, atol=1e-4)


def test_a_mirrored_picture_gives_mirrored_detections() -> None:
    """All views of a picture, or all views of its mirror image: the same views, so the same."""
    model: D2Det = small_detector()
    image = picture(64, 90)  # resized by 1, so the mirror image is exact
    views = make_views(image, INPUT)[:2]
    swapped = [replace(views[1], mirrored=False), replace(views[0], mirrored=True)]
    found, reflected = detect_views(model, views), detect_views(model, swapped)
    flipped = View(views[0].images, mirrored=True).from_reference(reflected.boxes)
    distance = torch.cdist(found.boxes, flipped).min(1).values
    assert (distance < 0.05).float().mean() > 0.8
    assert np.isclose(found.scores.sum(), reflected.scores.sum(), atol=0.05)
