"""Region proposal network (Ren et al., NeurIPS 2015) over a feature pyramid.

Letters: N pictures, T anchors of all levels together, A anchors per cell, R proposals of all
pictures together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2det.boxes import clip, decode_deltas
from d2det.config import RpnConfig
from d2det.models import initialization
from d2det.models.anchors import Anchors
from d2det.models.precision import answer
from d2det.models.selection import best_per_image
from d2det_ops import nms


@dataclass(frozen=True)
class RpnOutput:
    """What the network says about every anchor.

    logits: (N, T) float, objectness before the sigmoid.
    deltas: (N, T, 4) float, (dx, dy, dw, dh) from each anchor to its box.
    anchors: (T, 4) float32, in pixels of the resized input; level by level, in each row by row.
    level_sizes: number of anchors of each level; they sum to T.
    """

    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    level_sizes: tuple[int, ...]


@dataclass(frozen=True)
class Proposals:
    """Boxes worth a closer look, of all pictures of a batch in one row, picture after picture.

    boxes: (R, 4) float32, clipped to the picture, in pixels of the resized input.
    scores: (R,) float32 objectness in 0..1, best first in each picture.
    image_index: (R,) int64, ascending.
    """

    boxes: Tensor
    scores: Tensor
    image_index: Tensor

    def __len__(self) -> int:
        return self.scores.shape[0]

    @property
    def rois(self) -> Tensor:
        """(R, 5) float32 rows (image index, x1, y1, x2, y2), as the pooling ops take them."""
        return as_rois(self.boxes, self.image_index)


class RegionProposalNetwork(nn.Module):
    """Scores every anchor, and turns the best into proposals."""

    def __init__(self, channels: int, strides: Sequence[int], config: RpnConfig) -> None:
        super().__init__()
        self.config = config
        self.anchors = Anchors(tuple(strides), config.anchor_scale, config.anchor_ratios)
        num_anchors = len(config.anchor_ratios)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.logits = nn.Conv2d(channels, num_anchors, 1)
        self.deltas = nn.Conv2d(channels, 4 * num_anchors, 1)
        initialization.normal(self.conv, self.logits, self.deltas, std=0.01)

    def forward(self, features: Sequence[Tensor]) -> RpnOutput:
        """Returns the output for P2..P6, each (N, C, H_l, W_l)."""
        hidden = [F.relu(self.conv(feature), inplace=True) for feature in features]
        logits = [_rows(answer(self.logits, x), 1).squeeze(-1) for x in hidden]
        deltas = [_rows(answer(self.deltas, x), 4) for x in hidden]
        shapes = [(x.shape[-2], x.shape[-1]) for x in features]
        anchors = self.anchors(shapes, features[0].device)
        return RpnOutput(
            logits=torch.cat(logits, 1),
            deltas=torch.cat(deltas, 1),
            anchors=torch.cat(anchors),
            level_sizes=tuple(len(boxes) for boxes in anchors),
        )

    @torch.no_grad()
    def propose(self, output: RpnOutput, sizes: Tensor) -> Proposals:
        """Returns the proposals of pictures of `sizes` (N, 2) int64 (height, width).

        Of each level the best candidates are decoded, clipped and thinned by NMS; of what is left
        of a picture the best `top_n` go on. Training keeps more than inference.
        """
        config = self.config
        if self.training:
            pre_nms_top_n = top_n = config.train_top_n
        else:
            pre_nms_top_n, top_n = config.test_pre_nms_top_n, config.test_top_n
        scores, index, level = _best_per_level(output, pre_nms_top_n)
        num_images = scores.shape[0]
        boxes = decode_deltas(
            output.deltas.gather(1, index[..., None].expand(-1, -1, 4)), output.anchors[index]
        )
        height, width = sizes.to(boxes.device, boxes.dtype)[:, None].unbind(-1)
        boxes = clip(boxes, height, width).flatten(0, 1)
        image = torch.arange(num_images, device=boxes.device)
        group = image[:, None] * len(output.level_sizes) + level
        keep = nms(boxes, scores.flatten(), config.nms_iou, groups=group.flatten())
        image_index = image.repeat_interleave(index.shape[1])[keep]
        best = best_per_image(image_index, num_images, top_n)
        keep = keep[best]
        return Proposals(
            boxes=boxes[keep], scores=scores.flatten()[keep], image_index=image_index[best]
        )


def as_rois(boxes: Tensor, image_index: Tensor) -> Tensor:
    """Returns (R, 5) float rows (image index, x1, y1, x2, y2) of boxes (R, 4)."""
    return torch.cat((image_index[:, None].to(boxes.dtype), boxes), 1)


def _rows(x: Tensor, width: int) -> Tensor:
    """(N, A * width, H, W) as (N, H * W * A, width)."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, width)


def _best_per_level(output: RpnOutput, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `limit` best anchors of each level: scores (N, M), index (N, M) into T, level (M,)."""
    scores, index, level = [], [], []
    start = 0
    for i, logits in enumerate(output.logits.split(output.level_sizes, 1)):
        # By score, not by logit: the sigmoid may tie what the logits tell apart, and the released
        # code ranks what it ties in the order of the anchors.
        values, best = _top(logits.sigmoid(), min(limit, logits.shape[1]))
        scores.append(values)
        index.append(best + start)
        level.append(torch.full((best.shape[1],), i, device=logits.device))
        start += logits.shape[1]
    return torch.cat(scores, 1), torch.cat(index, 1), torch.cat(level)


def _top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row of scores (N, M) in 0..1, and their columns.

    Equal ones rank by column. In plain surroundings many anchors tie, and `topk` would choose among
    them by a method that depends on the device and on the number of rows: what a picture trains on
    would depend on its company.
    """
    # Floats from 0 on are ordered as their bits are; with the column below them no two keys tie.
    last = scores.shape[1] - 1
    bits = scores.float().view(torch.int32).long() << 32
    keys = bits + torch.arange(last, -1, -1, device=scores.device)
    columns = last - (keys.topk(count, 1).values & 0xFFFFFFFF)
    return scores.gather(1, columns), columns
