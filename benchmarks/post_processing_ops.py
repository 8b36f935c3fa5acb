"""Cases of the ops that select and encode, from one picture to a scene with 100 000 boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from measure import Case, Other  # keeps torch on one thread, hence first

import torch  # isort: skip
import cv2
import numpy as np
import torchvision
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from d2det.boxes import base_anchors
from d2det_ops import (
    assign_targets,
    assign_targets_reference,
    masks_to_rle,
    nms,
    soft_nms,
    soft_nms_reference,
)

IOU = 0.5
CELLS = 28
CLASSES = 80


def cases() -> Iterator[Case]:
    """Yields all cases."""
    yield from hard_suppression()
    yield from soft_suppression()
    yield from mask_encoding()
    yield from assignment()


def hard_suppression() -> Iterator[Case]:
    for scene, count, wanted in (
        (aerial, 1_000, None),
        (aerial, 10_000, 15),
        (aerial, 100_000, 150),
        (dense, 10_000, None),
        (dense, 100_000, 10),
    ):
        boxes, scores = scene(count)
        theirs = partial(torchvision.ops.nms, boxes, scores, IOU)
        rounds = 3 if count > 10_000 else 7
        yield Case(
            f"nms {count} {scene.__name__}",
            partial(nms, boxes, scores, IOU),
            {"torchvision nms": Other(theirs, wanted, rounds, agrees=torch.equal)},
        )
    boxes, scores = aerial(100_000)
    groups = torch.randint(0, 15, (len(boxes),), generator=torch.Generator().manual_seed(0))
    theirs = partial(torchvision.ops.batched_nms, boxes, scores, groups, IOU)
    yield Case(
        "nms 100000 aerial, 15 groups",
        partial(nms, boxes, scores, IOU, groups=groups),
        {"torchvision batched_nms": Other(theirs, rounds=3)},
    )


def soft_suppression() -> Iterator[Case]:
    for count, method, wanted in (
        (125, "linear", 300),
        (125, "gaussian", 300),
        (1000, "linear", None),
    ):
        boxes, scores = class_scores(count)
        run = partial(soft_nms, boxes, scores, method=method)
        loop = partial(soft_nms_loop, boxes, scores, method)
        twin = partial(soft_nms_reference, boxes, scores, method=method)
        agrees = partial(torch.allclose, atol=1e-6, rtol=0)
        others = {
            "torch loop over classes and picks": Other(loop, wanted, rounds=3, agrees=agrees),
            "twin, all classes at once": Other(twin, rounds=3, agrees=agrees),
        }
        yield Case(f"soft_nms {count} x {CLASSES} {method}", run, others)


def mask_encoding() -> Iterator[Case]:
    for height, width, cv2_wanted, torchvision_wanted in (
        (800, 1333, 10, 150),
        (4000, 4000, 150, None),
    ):
        masks, boxes = instances(100, height, width)
        size = {"height": height, "width": width}
        run = partial(masks_to_rle, masks, boxes, **size)
        released = partial(masks_to_rle, masks, boxes, **size, convention="released")
        by_cv2 = partial(cv2_paste_and_encode, masks, boxes, **size)
        others = {"cv2 paste in the box, pycocotools": Other(by_cv2, cv2_wanted, rounds=5)}
        if torchvision_wanted is not None:
            by_torchvision = partial(torchvision_paste_and_encode, masks, boxes, **size)
            others["torchvision paste, pycocotools"] = Other(
                by_torchvision, torchvision_wanted, rounds=3
            )
        yield Case(f"masks_to_rle 100 on {height} x {width}, exact", run, others)
        same = Other(by_cv2, cv2_wanted, rounds=5, agrees=equal)
        yield Case(
            f"masks_to_rle 100 on {height} x {width}, released",
            released,
            {"cv2 paste in the box, pycocotools": same},
        )
    masks, boxes = instances(100, 800, 1333)
    small = partial(masks_to_rle, masks, boxes, height=800, width=1333)
    yield Case(
        "masks_to_rle 100 on 40000 x 40000",
        partial(masks_to_rle, masks, boxes, height=40_000, width=40_000),
        {"the same boxes on 800 x 1333": Other(small, wanted=1 / 1.5)},
        rounds=51,
    )


def assignment() -> Iterator[Case]:
    anchors = anchors_of(800, 1344)
    for count, wanted in ((10, None), (100, None), (10_000, 10)):
        boxes, _ = dense(count)
        gts = boxes * torch.tensor([1.333, 0.8, 1.333, 0.8])
        limits = {"floor_iou": 0.3, "tie_iou": 0.3}
        twin = partial(assign_targets_reference, anchors, gts, **limits)
        yield Case(
            f"assign_targets {count} objects, {len(anchors)} anchors",
            partial(assign_targets, anchors, gts, **limits),
            {"twin, in blocks of 64 MiB": Other(twin, wanted, rounds=3, agrees=equal)},
        )


def equal(theirs: Sequence[Any], ours: Sequence[Any]) -> bool:
    """Whether two results are the same: tensors bit for bit, run lengths byte for byte."""
    if isinstance(ours[0], Tensor):
        return all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))
    return [rle["counts"] for rle in theirs] == [rle["counts"] for rle in ours]


def anchors_of(height: int, width: int) -> Tensor:
    """The anchors of all pyramid levels of a picture."""
    levels = []
    for stride in (4, 8, 16, 32, 64):
        y, x = torch.meshgrid(
            torch.arange(0, height, stride), torch.arange(0, width, stride), indexing="ij"
        )
        shift = torch.stack((x, y, x, y), -1).reshape(-1, 1, 4)
        levels.append((shift + base_anchors(stride, 8.0, (0.5, 1.0, 2.0))).reshape(-1, 4))
    return torch.cat(levels)


def aerial(count: int) -> tuple[Tensor, Tensor]:
    """Clusters of about five detections on each small object, as an aerial scene gives them."""
    generator = torch.Generator().manual_seed(0)
    objects = count // 5
    centre = torch.rand(objects, 2, generator=generator) * objects**0.5 * 60
    side = torch.exp(torch.randn(objects, 2, generator=generator) * 0.4 + 3.2)
    which = torch.randint(0, objects, (count,), generator=generator)
    middle = centre[which] + torch.randn(count, 2, generator=generator) * side[which] * 0.08
    size = side[which] * torch.exp(torch.randn(count, 2, generator=generator) * 0.1)
    scores = torch.rand(count, generator=generator)
    return torch.cat((middle - size / 2, middle + size / 2), 1), scores


def dense(count: int) -> tuple[Tensor, Tensor]:
    """Boxes of 12 to 60 pixels anywhere in 1000 x 1000: each overlaps hundreds of others."""
    generator = torch.Generator().manual_seed(0)
    middle = torch.rand(count, 2, generator=generator) * 1000
    size = torch.exp(torch.rand(count, 2, generator=generator) * 1.6 + 2.5)
    scores = torch.rand(count, generator=generator)
    return torch.cat((middle - size / 2, middle + size / 2), 1), scores


def class_scores(count: int) -> tuple[Tensor, Tensor]:
    """Proposals of one picture, each a candidate of nearly half of the classes."""
    generator = torch.Generator().manual_seed(0)
    middle = torch.rand(count, 2, generator=generator) * torch.tensor([1333.0, 800.0])
    size = torch.exp(torch.rand(count, 2, generator=generator) * 2.5 + 3.2)
    scores = torch.rand(count, CLASSES, generator=generator)
    scores = scores * (torch.rand(count, CLASSES, generator=generator) < 0.44)
    return torch.cat((middle - size / 2, middle + size / 2), 1), scores


def instances(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Lobed shapes with soft outlines in boxes of 30 to 300 pixels."""
    generator = torch.Generator().manual_seed(0)
    line = torch.linspace(-1, 1, CELLS)
    y, x = torch.meshgrid(line, line, indexing="ij")
    phase = torch.rand(count, 1, 1, generator=generator) * 6
    radius = 0.75 + 0.2 * torch.sin(3 * torch.atan2(y, x) + phase)
    masks = torch.sigmoid(12 * (radius - torch.hypot(x, y)))
    size = torch.exp(torch.rand(count, 2, generator=generator) * 2.3 + 3.4)
    middle = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    return masks, torch.cat((middle - size / 2, middle + size / 2), 1)


def soft_nms_loop(boxes: Tensor, scores: Tensor, method: str) -> Tensor:
    """The usual way in PyTorch: for each class, pick the best and rescore the rest."""
    result = torch.zeros_like(scores)
    for label in range(scores.shape[1]):
        rows = (scores[:, label] > 1e-3).nonzero().flatten()
        rest, current = boxes[rows], scores[rows, label]
        while len(rows):
            best = current.argmax()
            result[rows[best], label] = current[best]
            iou = torchvision.ops.box_iou(rest[best, None], rest)[0]
            if method == "gaussian":
                current = current * torch.exp(-iou.square() / 0.5)
            else:
                current = current * torch.where(iou > IOU, 1 - iou, 1)
            current[best] = 0
            left = current > 1e-3
            rows, rest, current = rows[left], rest[left], current[left]
    return result


def cv2_paste_and_encode(
    masks: Tensor, boxes: Tensor, height: int, width: int
) -> list[dict[str, Any]]:
    """The released paste: resize into the integer box of a picture-sized canvas, then encode."""
    cv2.setNumThreads(1)
    encoded = []
    for mask, (x1, y1, x2, y2) in zip(masks.numpy(), boxes.tolist(), strict=True):
        left, top = max(int(x1), 0), max(int(y1), 0)
        right, bottom = min(int(x2 - 1), width - 1), min(int(y2 - 1), height - 1)
        w, h = max(right - left + 1, 1), max(bottom - top + 1, 1)
        canvas = np.zeros((height, width), np.uint8, order="F")  # spares the encoder a copy
        part = canvas[top : top + h, left : left + w]
        part[...] = (cv2.resize(mask, (w, h)) > 0.5)[: part.shape[0], : part.shape[1]]
        encoded.append(coco_mask.encode(canvas))
    return encoded


def torchvision_paste_and_encode(
    masks: Tensor, boxes: Tensor, height: int, width: int
) -> list[dict[str, Any]]:
    """What torchvision's Mask R-CNN does, and then what COCO evaluation needs."""
    pasted = paste_masks_in_image(masks[:, None], boxes, (height, width))[:, 0] > 0.5
    canvases = pasted.to(torch.uint8).numpy()
    return [coco_mask.encode(np.asfortranarray(canvas)) for canvas in canvases]
