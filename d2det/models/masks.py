"""The instance branch (D2Det section 3.3): masks and how much to trust them.

Letters: R boxes, D channels of the regression branch, C channels of this one, K classes, M = 28
mask pixels per side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2det.config import MaskConfig
from d2det.models import initialization
from d2det.models.precision import answer, wide
from d2det.models.roi_pooling import ROI_SIZE
from d2det.models.row_counts import with_spare_rows

MASK_SIZE = 4 * ROI_SIZE
"""Mask pixels per side: two deconvolutions double the 7 x 7 cells twice."""
SCORE_WEIGHT = 0.3
"""mask score = box score + this * predicted IoU (released code; not clipped)."""

_NORM_GROUPS = 16


class MaskBranch(nn.Module):
    """Two deconvolutions to 28 x 28 masks, one for each class, and a predictor of their IoU."""

    def __init__(self, in_channels: int, num_classes: int, config: MaskConfig) -> None:
        super().__init__()
        channels = config.channels
        self.deconv1 = nn.ConvTranspose2d(in_channels, channels, 2, stride=2)
        self.norm1 = nn.GroupNorm(_NORM_GROUPS, channels)
        self.deconv2 = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.scoring = _MaskScoring(in_channels, num_classes, config.scoring_hidden)
        initialization.kaiming(self.deconv1, self.deconv2, self.logits)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Returns (R, M, M) float32 mask logits of class `labels` (R,) int64, 0..K-1.

        features: (R, D, 7, 7) of the regression branch. Only the filter of the class asked for is
        applied, which costs 1 / K of a convolution with all of them.
        """
        count, features, labels = len(labels), with_spare_rows(features), with_spare_rows(labels)
        x = F.relu(self.norm1(self.deconv1(features)), inplace=True)
        x = F.relu(self.deconv2(x), inplace=True)
        weight, bias = self.logits.weight[labels], self.logits.bias
        assert bias is not None
        # A correlation with one filter a row: the nine products of every pixel are one matrix
        # product, and folding adds each where it belongs (hence the flipped taps).
        taps = weight.flip(2, 3).flatten(2).transpose(1, 2)
        products = wide(taps @ x.flatten(2).to(taps.dtype))
        logits = F.fold(products, (MASK_SIZE, MASK_SIZE), kernel_size=3, padding=1)
        return (logits[:, 0] + wide(bias[labels])[:, None, None])[:count]

    def predict_iou(self, features: Tensor, mask_logits: Tensor, labels: Tensor) -> Tensor:
        """Returns (R,) float32 predicted IoU of masks (R, M, M) of class `labels` (R,).

        features: (R, D, 7, 7) of the regression branch. No gradient flows into the masks.
        """
        ious: Tensor = self.scoring(features, mask_logits.detach())
        return ious.gather(1, labels[:, None])[:, 0]


class _MaskScoring(nn.Module):
    """Two fully connected layers over the branch's features and the mask itself."""

    def __init__(self, in_channels: int, num_classes: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear((in_channels + 1) * ROI_SIZE**2, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.ious = nn.Linear(hidden, num_classes)
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        initialization.normal(self.ious, std=0.01)

    def forward(self, features: Tensor, mask_logits: Tensor) -> Tensor:
        """(R, K) float32 from features (R, D, 7, 7) and mask logits (R, M, M)."""
        mask = F.max_pool2d(mask_logits[:, None], kernel_size=4, stride=4, padding=1).sigmoid()
        x = with_spare_rows(torch.cat((features, mask.to(features.dtype)), 1).flatten(1))
        x = F.relu(self.fc2(F.relu(self.fc1(x), inplace=True)), inplace=True)
        return answer(self.ious, x)[: len(features)]
