"""One tiny call of every op, compiled against its twin: evidence that an installation works."""

from __future__ import annotations

from collections.abc import Callable

import torch

from d2det_ops import _library
from d2det_ops.adaptive_pool import adaptive_pool, adaptive_pool_reference
from d2det_ops.assign_targets import assign_targets, assign_targets_reference
from d2det_ops.deform_roi_pool import deform_roi_pool, deform_roi_pool_reference
from d2det_ops.masks_to_rle import masks_to_rle, masks_to_rle_reference
from d2det_ops.nms import nms, nms_reference
from d2det_ops.soft_nms import soft_nms, soft_nms_reference

TOLERANCE = 1e-4  # sums of a few dozen float32 terms of size 1, in another order


def selftest(device: str) -> dict[str, str]:
    """Returns "ok" or what went wrong for every op that runs compiled on `device` (cpu, cuda)."""
    return {op: _outcome(CASES[op], device) for op in CASES if _library.has_kernel(op, device)}


def _outcome(case: Callable[[str], tuple[object, object]], device: str) -> str:
    try:
        found, expected = case(device)
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
    except (RuntimeError, AssertionError) as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return "ok"


def _boxes(device: str) -> torch.Tensor:
    corner = torch.arange(24.0).reshape(12, 2) % 7 * 5
    return torch.cat((corner, corner + 10 + corner.flip(0) % 4), 1).to(device)


def _scores(device: str) -> torch.Tensor:
    return ((torch.arange(12.0) * 5 % 12 + 1) / 13).to(device)


def _assign_targets(device: str) -> tuple[object, object]:
    boxes = _boxes(device)
    found, expected = (
        assign(boxes, boxes[::3] + 1, floor_iou=0.3, tie_iou=0.3)
        for assign in (assign_targets, assign_targets_reference)
    )
    return found, expected


def _nms(device: str) -> tuple[object, object]:
    arguments = (_boxes(device), _scores(device), 0.4)
    return nms(*arguments), nms_reference(*arguments)


def _soft_nms(device: str) -> tuple[object, object]:
    boxes, scores = _boxes(device), _scores(device)[:, None].expand(-1, 3)
    return soft_nms(boxes, scores), soft_nms_reference(boxes, scores)


def _masks_to_rle(device: str) -> tuple[object, object]:
    masks = torch.linspace(0, 1, 12 * 49, device=device).reshape(12, 7, 7)
    boxes = _boxes(device)
    found = masks_to_rle(masks, boxes, height=60, width=60)
    expected = masks_to_rle_reference(masks, boxes, height=60, width=60)
    return [list(rle["counts"]) for rle in found], [list(rle["counts"]) for rle in expected]


def _adaptive_pool(device: str) -> tuple[object, object]:
    x = torch.linspace(-1, 1, 2 * 8 * 36, device=device).reshape(2, 8, 6, 6)
    affine = torch.linspace(0.5, 1.5, 8, device=device)
    arguments = (x, x.cos(), affine, -affine)
    return adaptive_pool(*arguments), adaptive_pool_reference(*arguments)


def _deform_roi_pool(device: str) -> tuple[object, object]:
    features = [torch.linspace(-1, 1, 8 * s * s, device=device).reshape(1, 8, s, s) for s in (9, 5)]
    rois = torch.cat((torch.zeros(12, 1, device=device), _boxes(device)), 1)
    levels = torch.arange(12, device=device) % 2
    offsets = torch.linspace(-1, 1, 12 * 8, device=device).reshape(12, 2, 2, 2)
    found, expected = (
        pool(features, rois, levels, strides=(4, 8), output_size=4, samples=2, offsets=offsets)
        for pool in (deform_roi_pool, deform_roi_pool_reference)
    )
    return found, expected


CASES = {
    "deform_roi_pool": _deform_roi_pool,
    "adaptive_pool": _adaptive_pool,
    "assign_targets": _assign_targets,
    "masks_to_rle": _masks_to_rle,
    "nms": _nms,
    "soft_nms": _soft_nms,
}
