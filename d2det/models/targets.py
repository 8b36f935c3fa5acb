"""What sampled boxes are to predict, where ground truths are boxes.

Letters: N pictures, A anchors, R RoIs, S = 7 cells per side.
"""

from __future__ import annotations

from torch import Tensor

from d2det.boxes import regression_size, to_inclusive
from d2det.models.dense_regression import cell_centres
from d2det.models.roi_pooling import ROI_SIZE


def inside_picture(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Returns (N, A) bool: which boxes (A, 4) lie wholly in pictures of `sizes` (N, 2) h, w.

    Only such anchors train (allowed border 0), so what is learned from a picture does not depend on
    how far its batch was padded.
    """
    height, width = sizes.to(boxes.device, non_blocking=True)[:, :, None].unbind(1)
    low = (boxes[:, :2] >= 0).all(1)
    return low & (boxes[:, 2] <= width) & (boxes[:, 3] <= height)


def overlap_cells(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """Returns (R, S, S) bool: the cells of boxes (R, 4) that lie on their gt_boxes (R, 4).

    A cell counts if its centre is at least one grid step, a sixth of the box, inside every side of
    the ground truth: of a perfect box the inner 5 x 5 cells do.
    """
    x, y = cell_centres(boxes)
    x1, y1, x2, y2 = to_inclusive(gt_boxes)[:, :, None, None].unbind(1)
    step_x, step_y = (regression_size(boxes) / (ROI_SIZE - 1))[:, :, None, None].unbind(1)
    in_columns = (x - x1 >= step_x) & (x2 - x >= step_x)
    in_rows = (y - y1 >= step_y) & (y2 - y >= step_y)
    return in_columns & in_rows
