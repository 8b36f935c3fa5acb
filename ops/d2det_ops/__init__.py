"""Compiled operators of the detector, each with a pure-PyTorch twin `<op>_reference`.

The twin is the definition: what tests compare with, and what runs where nothing is compiled.
"""

from d2det_ops._library import twins_only
from d2det_ops.adaptive_pool import adaptive_pool, adaptive_pool_reference
from d2det_ops.assign_targets import Overlaps, assign_targets, assign_targets_reference
from d2det_ops.deform_roi_pool import deform_roi_pool, deform_roi_pool_reference
from d2det_ops.masks_to_rle import Rle, masks_to_rle, masks_to_rle_reference
from d2det_ops.nms import nms, nms_reference
from d2det_ops.soft_nms import soft_nms, soft_nms_reference

__all__ = [
    "Overlaps",
    "Rle",
    "adaptive_pool",
    "adaptive_pool_reference",
    "assign_targets",
    "assign_targets_reference",
    "deform_roi_pool",
    "deform_roi_pool_reference",
    "masks_to_rle",
    "masks_to_rle_reference",
    "nms",
    "nms_reference",
    "soft_nms",
    "soft_nms_reference",
    "twins_only",
]
