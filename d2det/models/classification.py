"""The classification branch: what is in a RoI.

Letters: R RoIs, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from d2det.config import ClassificationConfig, RoiPoolingConfig
from d2det.models import initialization
from d2det.models.precision import answer
from d2det.models.roi_pooling import DiscriminativeRoiPooling, RoiLinear


class ClassificationBranch(nn.Module):
    """Discriminative RoI pooling and two fully connected layers; background is the last class."""

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        pooling: RoiPoolingConfig,
        config: ClassificationConfig,
    ) -> None:
        super().__init__()
        self.pooling = DiscriminativeRoiPooling(channels, pooling)
        self.fc1 = RoiLinear(channels, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.hidden)
        self.logits = nn.Linear(config.hidden, num_classes + 1)
        initialization.xavier(self.fc1, self.fc2)
        initialization.normal(self.logits, std=0.01)

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Returns (R, K + 1) float32 logits of rois (R, 5) from P2..P5, each (N, C, H_l, W_l)."""
        return self.classify(self.pooling(features, rois))

    def classify(self, pooled: Tensor) -> Tensor:
        """Returns (R, K + 1) float32 logits from pooled features (R, C, 7, 7)."""
        hidden = F.relu(self.fc1(pooled), inplace=True)
        hidden = F.relu(self.fc2(hidden), inplace=True)
        return answer(self.logits, hidden)
