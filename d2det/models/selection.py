"""From class scores to detections: thresholds, NMS, soft-NMS and how many a picture may have.

Letters: N pictures, R proposals and D detections of all pictures together, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from d2det.config import InferenceConfig
from d2det_ops import nms, soft_nms


@dataclass(frozen=True)
class Candidates:
    """Detections in the making, of all pictures of a batch in one row, picture after picture.

    boxes: (D, 4) float32, in pixels of the resized input.  scores: (D,) float32, best first in
    each picture.  labels: (D,) int64 in 0..K-1.  image_index: (D,) int64, ascending.
    proposal_index: (D,) int64, the proposal each came from; candidates of one proposal differ in
    label and share whatever is regressed.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    image_index: Tensor
    proposal_index: Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]

    def take(self, index: Tensor) -> Candidates:
        """Returns the candidates at `index` (M,) int64."""
        return Candidates(
            boxes=self.boxes[index],
            scores=self.scores[index],
            labels=self.labels[index],
            image_index=self.image_index[index],
            proposal_index=self.proposal_index[index],
        )


def select(
    boxes: Tensor,
    scores: Tensor,
    image_index: Tensor,
    *,
    num_images: int,
    config: InferenceConfig,
) -> Candidates:
    """Returns the best class decisions after class-wise NMS: at most `max_regressed` a picture.

    boxes: (R, 4) float32.  scores: (R, K) float32 probabilities.  image_index: (R,) int64.
    One proposal can appear several times, once for each class it may be.
    """
    rows, labels = (scores > config.score_threshold).nonzero(as_tuple=True)
    found = Candidates(boxes[rows], scores[rows, labels], labels, image_index[rows], rows)
    group = found.image_index * scores.shape[1] + labels
    keep = nms(found.boxes, found.scores, config.nms_iou, groups=group)
    best = best_per_image(found.image_index[keep], num_images, config.max_regressed)
    return found.take(keep[best])


def soften(
    found: Candidates, *, num_images: int, num_classes: int, config: InferenceConfig
) -> Candidates:
    """Returns what class-wise soft-NMS leaves, rescored: at most `max_detections` a picture."""
    rescored = torch.cat(
        [
            _rescore(found.take(_positions(found.image_index, i)), num_classes, config)
            for i in range(num_images)
        ]
    )
    order = rescored.argsort(descending=True, stable=True)
    order = order[rescored[order] > 0]
    best = best_per_image(found.image_index[order], num_images, config.max_detections)
    return replace(found, scores=rescored).take(order[best])


def best_per_image(image_index: Tensor, num_images: int, limit: int) -> Tensor:
    """Returns positions into `image_index` (R,): per picture the first `limit`, picture by picture.

    With rows that come best first, those are the best `limit` of each picture.
    """
    order = image_index.argsort(stable=True)
    counts = image_index.bincount(minlength=num_images)
    starts = (counts.cumsum(0) - counts)[image_index[order]]
    rank = torch.arange(len(order), device=order.device) - starts
    return order[rank < limit]


def _positions(image_index: Tensor, image: int) -> Tensor:
    return (image_index == image).nonzero()[:, 0]


def _rescore(found: Candidates, num_classes: int, config: InferenceConfig) -> Tensor:
    """(D,) scores of one picture's candidates after soft-NMS, 0 where dropped."""
    by_class = found.scores.new_zeros(len(found), num_classes)
    by_class.scatter_(1, found.labels[:, None], found.scores[:, None])
    by_class = soft_nms(
        found.boxes,
        by_class,
        method="linear",
        iou_threshold=config.soft_nms_iou,
        min_score=config.soft_nms_min_score,
    )
    return by_class.gather(1, found.labels[:, None])[:, 0]
