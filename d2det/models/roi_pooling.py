"""Discriminative RoI pooling (D2Det section 3.2), and the choice of a pyramid level for a RoI.

Letters: R RoIs, L = 4 pyramid levels P2..P5, C channels, P = 14 bins per side before the stride of
two, 7 after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2det.boxes import areas
from d2det.config import RoiPoolingConfig
from d2det.models import initialization
from d2det.models.fpn import STRIDES
from d2det.models.row_counts import rounded_up
from d2det.ragged import ragged
from d2det_ops import adaptive_pool, deform_roi_pool

ROI_STRIDES = STRIDES[:4]
"""Strides of P2..P5, from which RoIs are pooled."""
ROI_SIZE = 7
"""Bins per side of a pooled RoI, and cells per side of dense local regression (paper: k)."""
FINE_SIZE = 2 * ROI_SIZE
"""Bins per side that are sampled before a stride of two brings them to `ROI_SIZE`."""

_SIDE_OF_LEVEL_1 = 112  # a RoI of this side, 28 cells of P3, is the smallest pooled from P3
_COARSE_SIZE = 3  # bins per side that the offset predictor looks at


def roi_levels(boxes: Tensor) -> Tensor:
    """Returns the (R,) int64 pyramid level, 0 for P2 to 3 for P5, of boxes (R, 4) in pixels.

    Lin et al. 2017, equation 1: one level up for each doubling of the side.
    """
    side = areas(boxes).clamp(min=0).sqrt()
    level = torch.floor(torch.log2(side / (_SIDE_OF_LEVEL_1 / 2) + 1e-6))
    # A diverging network proposes NaN boxes: they need some level to reach the check of the loss.
    return level.nan_to_num(0).clamp(0, len(ROI_STRIDES) - 1).long()


def align_rois(features: Sequence[Tensor], rois: Tensor) -> Tensor:
    """Returns (R, C, P, P) RoIAlign features of rois (R, 5) from P2..P5, each (N, C, H_l, W_l)."""
    return deform_roi_pool(
        features,
        rois,
        roi_levels(rois[:, 1:]),
        strides=ROI_STRIDES,
        output_size=FINE_SIZE,
        samples=2,
        sampling="align",
    )


class RoiLinear(nn.Linear):
    """A linear layer over whole pooled RoIs."""

    def __init__(self, channels: int, out_features: int) -> None:
        super().__init__(channels * ROI_SIZE**2, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (R, out) from x (R, C, 7, 7)."""
        return super().forward(x.flatten(1))


class DiscriminativeRoiPooling(nn.Module):
    """Pools RoIs at predicted offsets and averages the bins by predicted weights.

    Every level has its own offset predictor and its own weighting.
    """

    def __init__(self, channels: int, config: RoiPoolingConfig) -> None:
        super().__init__()
        self.config = config
        self.offsets = nn.ModuleList()
        self.weighting = nn.ModuleList()
        for _ in ROI_STRIDES:
            if config.deformable:
                self.offsets.append(_offset_predictor(channels, config.offset_hidden))
            if config.adaptive_weighting:
                self.weighting.append(_AdaptiveWeighting(channels))

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Returns (R, C, 7, 7) of rois (R, 5) from P2..P5, each (N, C, H_l, W_l).

        RoIs are sorted by level, so each level's layers run once; that needs the only number that
        must reach the host, how many RoIs each level has.
        """
        levels = roi_levels(rois[:, 1:])
        order, counts, place = _by_level(levels)
        rois, levels = rois[order], levels[order]
        pooled = self._pool(features, rois, levels, counts)
        if self.config.adaptive_weighting:
            parts = zip(self.weighting, pooled.split(counts), strict=True)
            pooled = torch.cat([weighting(part) for weighting, part in parts])
        else:
            pooled = F.avg_pool2d(pooled, 2)
        return pooled[place]

    def predict_offsets(
        self, features: Sequence[Tensor], rois: Tensor, levels: Tensor, counts: Sequence[int]
    ) -> Tensor:
        """Returns (R, 2, 7, 7) offsets (x, y) of rois (R, 5) sorted by level, in tenths of a RoI.

        levels: (R,) int64, ascending.  counts: number of RoIs of each level.
        """
        coarse = deform_roi_pool(
            features,
            rois,
            levels,
            strides=ROI_STRIDES,
            output_size=_COARSE_SIZE,
            samples=self.config.samples_per_bin,
        )
        parts = zip(self.offsets, coarse.flatten(1).split(counts), strict=True)
        offsets = torch.cat([predict(part) for predict, part in parts])
        return offsets.view(-1, 2, ROI_SIZE, ROI_SIZE)

    def _pool(
        self, features: Sequence[Tensor], rois: Tensor, levels: Tensor, counts: Sequence[int]
    ) -> Tensor:
        """(R, C, P, P) of RoIs sorted by level."""
        deformable = self.config.deformable
        return deform_roi_pool(
            features,
            rois,
            levels,
            strides=ROI_STRIDES,
            output_size=FINE_SIZE,
            samples=self.config.samples_per_bin,
            offsets=self.predict_offsets(features, rois, levels, counts) if deformable else None,
            sampling="deform" if deformable else "align",
        )


def _by_level(levels: Tensor) -> tuple[Tensor, list[int], Tensor]:
    """What sorts RoIs of `levels` (R,) by level, each level's last repeated up to a rounded number.

    Returns indices of RoIs, how many there are of each level, and the place (R,) of each RoI.
    """
    order = levels.argsort(stable=True)
    counts = np.array(levels.bincount(minlength=len(ROI_STRIDES)).tolist())
    rounded = np.array([rounded_up(count, levels.device) for count in counts.tolist()])
    level, source = ragged(counts.cumsum() - counts, rounded)
    source = np.minimum(source, counts.cumsum()[level] - 1)
    _, slot = ragged(rounded.cumsum() - rounded, counts)
    source_index, slot_index = (torch.from_numpy(x).to(order.device) for x in (source, slot))
    place = torch.empty_like(order).scatter_(0, order, slot_index)
    return order[source_index], rounded.tolist(), place


class _AdaptiveWeighting(nn.Module):
    """Averages 3x3 windows with stride two, each bin and channel by its own predicted weight."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.InstanceNorm2d(channels, affine=True)
        initialization.zero(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (R, C, 7, 7) from x (R, C, P, P)."""
        return adaptive_pool(x, self.conv(x), self.norm.weight, self.norm.bias, eps=self.norm.eps)


def _offset_predictor(channels: int, hidden: int) -> nn.Sequential:
    """Three layers from a 3x3 pooled RoI to 7x7 offsets, which start at zero."""
    last = nn.Linear(hidden, 2 * ROI_SIZE**2)
    initialization.zero(last)
    return nn.Sequential(
        nn.Linear(channels * _COARSE_SIZE**2, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        last,
    )
