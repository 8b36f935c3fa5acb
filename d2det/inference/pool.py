"""Detections of all windows of a scene in one table, and which of them an edge cuts.

Letters: D detections of all windows together, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from d2det.inference.overlaps import Boxes, Flags, Floats
from d2det.inference.windows import Window, WindowDetections
from d2det.structures import Detections, Rle

EDGE = 0.01
"""Share of a window's side within which a box that nears the edge counts as cut: regression places
a side to a few pixels of 800. A complete object taken for a cut one merges just as well."""


@dataclass(frozen=True)
class Pool:
    """Detections of all windows in an order of merit that no input order can change.

    Complete ones first, by score; ties by label, place and window.

    boxes: corners, labels and windows.  scores, mask_scores: (D,).  masks: D, or None.
    windows: (W, 4) x1, y1, x2, y2.
    cut_sides: (D, 4), at which sides (left, top, right, bottom) an edge of its window cuts each.
    """

    boxes: Boxes
    scores: NDArray[np.float32]
    mask_scores: NDArray[np.float32]
    masks: tuple[Rle, ...] | None
    windows: Floats
    cut_sides: Flags

    @property
    def is_cut(self) -> Flags:
        """(D,) whether an edge of its window cuts each."""
        return np.asarray(self.cut_sides.any(1))


def pool_windows(results: Sequence[WindowDetections], size: tuple[int, int]) -> Pool:
    """Returns the pool of a scene of `size` (height, width)."""
    found = [result.found for result in results]
    windows = np.array([_corners(result.window) for result in results], float).reshape(-1, 4)
    window = np.repeat(np.arange(len(found)), [len(each) for each in found])
    corners = _column([each.boxes for each in found], (0, 4)).astype(float)
    labels = _column([each.labels for each in found], (0,)).astype(np.int64)
    scores = _column([each.scores for each in found], (0,)).astype(np.float32)
    masks, mask_scores = None, np.zeros_like(scores)
    if found and all(each.masks is not None for each in found):
        masks = tuple(mask for each in found for mask in each.masks or ())
        mask_scores = _column([_mask_scores(each) for each in found], (0,)).astype(np.float32)
    cut_sides = _cut_sides(corners, windows[window], size)
    x1, y1, x2, y2 = corners.T
    order = np.lexsort((window, y2, x2, y1, x1, labels, -scores, cut_sides.any(1)))
    return Pool(
        boxes=Boxes(corners[order], labels[order], window[order]),
        scores=scores[order],
        mask_scores=mask_scores[order],
        masks=None if masks is None else tuple(masks[i] for i in order),
        windows=windows,
        cut_sides=cut_sides[order],
    )


def _mask_scores(found: Detections) -> torch.Tensor:
    assert found.mask_scores is not None
    return found.mask_scores


def _column(parts: Sequence[torch.Tensor], empty: tuple[int, ...]) -> NDArray:
    return torch.cat([part.cpu() for part in parts] or [torch.empty(empty)]).numpy()


def _corners(window: Window) -> tuple[int, int, int, int]:
    return window.x, window.y, window.x + window.width, window.y + window.height


def _cut_sides(corners: Floats, windows: Floats, size: tuple[int, int]) -> Flags:
    """(D, 4) bool: sides that reach an edge of their window (D, 4) which is not the scene's."""
    margin = EDGE * np.tile(windows[:, 2:] - windows[:, :2], 2)
    at_edge = np.concatenate(
        (corners[:, :2] <= (windows + margin)[:, :2], corners[:, 2:] >= (windows - margin)[:, 2:]),
        axis=1,
    )
    height, width = size
    return np.asarray(at_edge & (windows != np.array([0, 0, width, height])))
