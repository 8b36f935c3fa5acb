from __future__ import annotations

import pytest
import torch

from d2det.config import MaskConfig, ModelConfig, RegressionConfig
from d2det.models.box_regression import DeltaRegression
from d2det.models.build import build_detector
from d2det.models.dense_regression import DenseRegression
from d2det.presets import PRESETS


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS.keys())
def test_every_preset_builds_what_it_says(preset):
    config = preset.model
    with torch.device("meta"):
        model = build_detector(config)
    dense = config.regression.kind == "dense"
    assert isinstance(model.regression, DenseRegression if dense else DeltaRegression)
    assert (model.mask is None) == (config.mask is None)
    pooling = model.classification.pooling
    assert len(pooling.offsets) == (4 if config.roi_pooling.deformable else 0)
    assert len(pooling.weighting) == (4 if config.roi_pooling.adaptive_weighting else 0)
    assert model.classification.logits.out_features == config.num_classes + 1


def test_masks_without_dense_regression_are_refused():
    with pytest.raises(ValueError, match=r"regression\.kind"):
        ModelConfig(mask=MaskConfig(), regression=RegressionConfig(kind="delta"))
