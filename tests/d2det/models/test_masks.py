from __future__ import annotations

import torch
import torch.nn.functional as F

from d2det.config import MaskConfig
from d2det.models.masks import MaskBranch


def branch() -> MaskBranch:
    torch.manual_seed(0)
    return MaskBranch(12, 5, MaskConfig(channels=16, scoring_hidden=8))


def test_a_mask_of_its_class_equals_that_channel_of_the_full_convolution():
    mask, features = branch(), torch.randn(6, 12, 7, 7)
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    x = F.relu(mask.norm1(mask.deconv1(features)))
    every = mask.logits(F.relu(mask.deconv2(x)))
    expected = every[torch.arange(6), labels]
    torch.testing.assert_close(mask(features, labels), expected, rtol=1e-4, atol=1e-5)


def test_only_the_filters_of_the_labels_learn():
    mask = branch()
    mask(torch.randn(2, 12, 7, 7), torch.tensor([1, 3])).square().sum().backward()
    touched = mask.logits.weight.grad.abs().amax((1, 2, 3)) > 0
    assert touched.tolist() == [False, True, False, True, False]


def test_quality_is_that_of_the_label_and_does_not_teach_the_mask():
    mask, features = branch(), torch.randn(3, 12, 7, 7)
    labels = torch.tensor([4, 0, 2])
    logits = mask(features, labels)
    iou = mask.predict_iou(features, logits, labels)
    every = mask.scoring(features, logits)
    assert torch.equal(iou, every[torch.arange(3), labels])
    iou.sum().backward()
    assert mask.logits.weight.grad is None
    assert mask.scoring.fc1.weight.grad is not None


def test_no_boxes_have_no_masks():
    mask, features = branch(), torch.zeros(0, 12, 7, 7)
    labels = torch.zeros(0, dtype=torch.int64)
    logits = mask(features, labels)
    assert logits.shape == (0, 28, 28)
    assert mask.predict_iou(features, logits, labels).shape == (0,)
