"""The usual box regression of Faster R-CNN, which the paper's baseline uses.

Letters: R boxes, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from d2det.boxes import decode_deltas
from d2det.config import RegressionConfig
from d2det.models import initialization
from d2det.models.precision import answer
from d2det.models.roi_pooling import RoiLinear

DELTA_STD = (0.1, 0.1, 0.2, 0.2)
"""Units of the predicted (dx, dy, dw, dh), so that targets have about unit variance."""


class DeltaRegression(nn.Module):
    """Two fully connected layers and one class-agnostic delta, in a branch of its own."""

    def __init__(self, channels: int, config: RegressionConfig) -> None:
        super().__init__()
        self.fc1 = RoiLinear(channels, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.hidden)
        self.deltas = nn.Linear(config.hidden, 4)
        initialization.xavier(self.fc1, self.fc2)
        initialization.normal(self.deltas, std=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (R, 4) float32 deltas, in units of `DELTA_STD`, for RoI features (R, C, 14, 14).

        The mean of 2 x 2 bins of a 14 x 14 RoIAlign is a 7 x 7 RoIAlign with twice the samples.
        """
        hidden = F.relu(self.fc1(F.avg_pool2d(x, 2)), inplace=True)
        hidden = F.relu(self.fc2(hidden), inplace=True)
        return answer(self.deltas, hidden)

    def decode(self, boxes: Tensor, deltas: Tensor) -> Tensor:
        """Returns the regressed boxes (R, 4) of proposals `boxes` (R, 4); they are not clipped."""
        return decode_deltas(deltas * deltas.new_tensor(DELTA_STD), boxes)
