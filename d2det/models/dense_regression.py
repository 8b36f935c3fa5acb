"""Dense local regression with binary overlap prediction (D2Det section 3.1).

Each of the 7 x 7 cells of a proposal predicts the whole box, as distances from its centre to the
four sides; the cells that are predicted to lie on the object vote.

Letters: R boxes, C channels, D channels of the branch, k = 7 cells per side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2det.boxes import from_inclusive, regression_size
from d2det.config import RegressionConfig
from d2det.models import initialization
from d2det.models.precision import answer
from d2det.models.roi_pooling import ROI_SIZE
from d2det.models.row_counts import with_spare_rows

_COUNT_EPS = 1e-5  # of the released code; it moves a box of 25 votes by 4e-7 of its coordinates


@dataclass(frozen=True)
class DensePrediction:
    """Output of the regression branch.

    offsets: (R, 4, k, k) float32 >= 0, distances to the left, right, top and bottom side in widths
        and heights of the proposal.
    overlap: (R, k, k) float32 logits, positive where the cell lies on the object.
    features: (R, D, k, k), what the instance branch goes on from.
    """

    offsets: Tensor
    overlap: Tensor
    features: Tensor


class DenseRegression(nn.Module):
    """Eight 3x3 convolutions on a 14 x 14 RoI, then offsets and overlap of 7 x 7 cells."""

    def __init__(self, channels: int, config: RegressionConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels
        self.convs = nn.ModuleList(
            _ConvNorm(
                channels if i == 0 else width,
                width,
                stride=2 if i == 0 else 1,
                groups=config.norm_groups,
            )
            for i in range(config.num_convs)
        )
        self.offsets = nn.Conv2d(width, 4, 3, padding=1)
        self.overlap = nn.Conv2d(width, 1, 3, padding=1)
        initialization.normal(self.offsets, self.overlap, std=0.001)
        assert self.offsets.bias is not None
        nn.init.constant_(self.offsets.bias, config.initial_offset)

    def forward(self, x: Tensor) -> DensePrediction:
        """Returns the prediction for RoI features x (R, C, 2k, 2k)."""
        count, x = len(x), with_spare_rows(x)
        for conv in self.convs:
            x = conv(x)
        return DensePrediction(
            offsets=F.relu(answer(self.offsets, x))[:count],
            overlap=answer(self.overlap, x)[:count, 0],
            features=x[:count],
        )

    def decode(self, boxes: Tensor, prediction: DensePrediction) -> Tensor:
        """Returns the regressed boxes (R, 4) of proposals `boxes` (R, 4); they are not clipped.

        A box for which no cell votes collapses to the first pixel, as in the released code.
        """
        cells = _inclusive_cell_boxes(boxes, prediction.offsets)
        if not self.config.overlap:
            return from_inclusive(cells.mean((1, 2)))
        votes = (prediction.overlap > 0).to(cells.dtype)
        total = (cells * votes[..., None]).sum((1, 2))
        return from_inclusive(total / (votes.sum((1, 2))[:, None] + _COUNT_EPS))


def cell_centres(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Returns x (R, 1, k) and y (R, k, 1) of the centres of the cells of boxes (R, 4)."""
    step = (torch.arange(ROI_SIZE, device=boxes.device, dtype=boxes.dtype) + 0.5) / ROI_SIZE
    size = regression_size(boxes)
    x = boxes[:, 0, None] + size[:, 0, None] * step
    y = boxes[:, 1, None] + size[:, 1, None] * step
    return x[:, None, :], y[:, :, None]


def cell_boxes(boxes: Tensor, offsets: Tensor) -> Tensor:
    """Returns (R, k, k, 4) boxes, one a cell, of offsets (R, 4, k, k) on proposals (R, 4)."""
    return from_inclusive(_inclusive_cell_boxes(boxes, offsets))


def _inclusive_cell_boxes(boxes: Tensor, offsets: Tensor) -> Tensor:
    """As `cell_boxes`, with x2, y2 the last covered pixel: the frame in which cells are averaged.

    The difference shows only where no cell votes.
    """
    x, y = cell_centres(boxes)
    width, height = regression_size(boxes)[:, :, None, None].unbind(1)
    left, right, top, bottom = offsets.unbind(1)
    return torch.stack(
        (x - left * width, y - top * height, x + right * width, y + bottom * height), -1
    )


class _ConvNorm(nn.Module):
    """3x3 convolution, group normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(groups, out_channels)
        initialization.kaiming(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (R, D, H / stride, W / stride) from x (R, C, H, W)."""
        return F.relu(self.norm(self.conv(x)), inplace=True)
