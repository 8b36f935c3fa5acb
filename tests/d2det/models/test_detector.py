from __future__ import annotations

import pytest
import torch

from d2det.config import InferenceConfig, RegressionConfig, RoiPoolingConfig
from d2det.structures import ImageBatch
from tests.d2det.models.small import CONFIG, pictures, small_detector

SIZES = ((90, 120), (64, 64), (90, 120), (128, 70))
ABLATIONS = {
    "everything": {},
    "no masks": {"mask": None},
    "no soft-NMS": {"inference": InferenceConfig(score_threshold=0.05, soft_nms=False)},
    "no overlap": {"regression": CONFIG.regression.model_copy(update={"overlap": False})},
    "no offsets": {"roi_pooling": RoiPoolingConfig(deformable=False, samples_per_bin=1)},
    "no weighting": {"roi_pooling": RoiPoolingConfig(adaptive_weighting=False, offset_hidden=8)},
    "baseline": {
        "mask": None,
        "regression": RegressionConfig(kind="delta", hidden=16),
        "roi_pooling": RoiPoolingConfig(
            deformable=False, adaptive_weighting=False, samples_per_bin=1
        ),
    },
}


def assert_same(a, b) -> None:
    assert a.size == b.size
    assert torch.equal(a.labels, b.labels)
    torch.testing.assert_close(a.boxes, b.boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(a.scores, b.scores, rtol=1e-4, atol=1e-5)
    assert (a.masks is None) == (b.masks is None)
    if a.masks is not None:
        torch.testing.assert_close(a.masks, b.masks, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(a.mask_scores, b.mask_scores, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("changes", ABLATIONS.values(), ids=ABLATIONS.keys())
def test_a_batch_gives_what_its_pictures_give_alone(changes):
    model = small_detector(CONFIG.model_copy(update=changes))
    batch = pictures(*SIZES)
    together = model.detect(batch)
    assert [found.size for found in together] == list(SIZES)
    assert all(len(found) > 0 for found in together)
    for i, (height, width) in enumerate(SIZES):
        padded = batch.pixels[i : i + 1, :, : -(-height // 32) * 32, : -(-width // 32) * 32]
        (alone,) = model.detect(ImageBatch(padded, batch.sizes[i : i + 1]))
        assert_same(together[i], alone)


def test_detections_are_sorted_limited_and_complete():
    for found in small_detector().detect(pictures(*SIZES)):
        count = len(found)
        assert count <= CONFIG.inference.max_detections
        assert found.scores.diff().le(0).all()
        assert set(found.labels.tolist()) <= {0, 1, 2}
        assert found.masks.shape == (count, 28, 28)
        assert found.mask_scores.shape == (count,)


def test_a_picture_without_detections_has_empty_ones():
    config = CONFIG.model_copy(update={"inference": InferenceConfig(score_threshold=1.0)})
    for found in small_detector(config).detect(pictures(*SIZES)):
        assert len(found) == 0
        assert found.boxes.shape == (0, 4)
        assert found.masks.shape == (0, 28, 28)


@pytest.mark.parametrize("num_classes", [1, 2, 17])
def test_any_number_of_classes(num_classes):
    config = CONFIG.model_copy(update={"num_classes": num_classes})
    model = small_detector(config)
    assert model.classification.logits.out_features == num_classes + 1
    assert model.mask.logits.out_channels == num_classes
    model.detect(pictures((64, 64)))


def test_no_pictures_give_no_detections():
    empty = ImageBatch(torch.zeros(0, 3, 64, 64), torch.zeros(0, 2, dtype=torch.int64))
    assert small_detector().detect(empty) == []


def test_a_proposal_of_several_classes_is_regressed_once():
    config = InferenceConfig(score_threshold=0.0, soft_nms=False, max_regressed=60)
    model, rows = small_detector(CONFIG.model_copy(update={"inference": config})), []
    model.regression.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    (found,) = model.detect(pictures((90, 120)))
    boxes = len(found.boxes.unique(dim=0))
    assert rows == [boxes, boxes]  # for the boxes, and again inside them for the masks
    assert boxes < len(found)
