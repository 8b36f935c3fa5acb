"""Joins what overlapping windows found into the detections of one scene.

A detection that ends at an edge of its window inside the scene is *cut*: the object may go on.

1. A complete detection replaces every detection of the same object in other windows, best score
   first. It stands for the object's best view, so it takes the highest score it replaces.
2. What is cut in every window, because it is larger than the overlap, is united: the union of
   boxes and masks of the pieces, with the best piece's score.

Detections of one window are never compared with each other; that was the detector's own business.
The result depends only on the set of detections: not on the order of windows, nor on batches.

Letters: D detections of all windows together, W windows, M matches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from d2det import rle
from d2det.inference.overlaps import Flags, Floats, Overlaps, find_overlaps
from d2det.inference.pool import Pool, pool_windows
from d2det.inference.seams import SeamAudit, find_doubled
from d2det.inference.windows import WindowDetections
from d2det.ragged import Ints
from d2det.structures import Detections, Rle

SAME_IOU = 0.5
"""Windows agree on an object when its boxes overlap by more inside their common region."""
INSIDE_IOS = 0.7
"""Or when one box covers more of the other than this: what reaches into a window by a corner, and
objects of a few pixels, are drawn too differently for the first rule."""
MIN_SHARE = 0.25
"""A box does not stand for one of more than 1 / this its area that merely covers it."""


@dataclass(frozen=True)
class Merged:
    """Detections of the scene, best first, and how well its windows agreed."""

    detections: Detections
    audit: SeamAudit


def merge_windows(results: Sequence[WindowDetections], size: tuple[int, int]) -> Merged:
    """Returns the detections of a scene of `size` (height, width) from those of its windows.

    Time and memory follow the numbers of detections and windows, not the size of the scene.
    """
    pool = pool_windows(sorted(results, key=lambda result: result.window), size)
    overlaps = find_overlaps(pool.boxes, pool.windows)
    matches = _match(pool, overlaps)
    kept = _replace(matches, len(pool.scores))
    objects = _unite(matches, kept)
    detections = _gather(pool, matches, objects, size)
    audit = _audit(pool, overlaps, matches, objects, detections)
    order = torch.argsort(detections.scores, descending=True, stable=True)
    return Merged(detections.select(order), audit)


@dataclass(frozen=True)
class _Matches:
    """Pairs that show one object; the first of a pair ranks higher.

    first, second: (M,) positions in the pool.
    agree: (M,) whether the boxes agree, rather than that one lies inside the other.
    replaces: (M,) whether the first, being complete, stands for the second (else they are pieces).
    """

    first: Ints
    second: Ints
    agree: Flags
    replaces: Flags


def _match(pool: Pool, overlaps: Overlaps) -> _Matches:
    agree = overlaps.iou > SAME_IOU
    inside = overlaps.ios > INSIDE_IOS
    some = agree | inside
    first, second = overlaps.first[some], overlaps.second[some]
    agree, inside = agree[some], inside[some]
    area = np.maximum(pool.boxes.corners[:, 2:] - pool.boxes.corners[:, :2], 0).prod(1)
    stands_for = agree | (inside & (area[first] > MIN_SHARE * area[second]))
    sees_it = _share_inside(pool, second, pool.boxes.window[first]) > INSIDE_IOS
    replaces = ~pool.is_cut[first] & stands_for & sees_it
    # Pieces that merely nest are one object only if each goes on into the other's window.
    goes_on = _goes_on(pool, first, second) & _goes_on(pool, second, first)
    same = replaces | agree | (inside & goes_on)
    return _Matches(first[same], second[same], agree[same], replaces[same])


def _share_inside(pool: Pool, index: Ints, window: Ints) -> Floats:
    """(M,) share of the area of boxes `index` that lies in windows `window`."""
    box, frame = pool.boxes.corners[index], pool.windows[window]
    visible = np.minimum(box[:, 2:], frame[:, 2:]) - np.maximum(box[:, :2], frame[:, :2])
    whole = np.maximum(box[:, 2:] - box[:, :2], np.finfo(float).tiny)
    return np.asarray((np.maximum(visible, 0) / whole).prod(1))


def _goes_on(pool: Pool, index: Ints, other: Ints) -> Flags:
    """(M,) whether boxes `index` are cut at an edge that runs through the window of `other`."""
    edges = pool.windows[pool.boxes.window[index]]
    frame = pool.windows[pool.boxes.window[other]]
    low, high = np.tile(frame[:, :2], 2), np.tile(frame[:, 2:], 2)
    return np.asarray((pool.cut_sides[index] & (edges > low) & (edges < high)).any(1))


def _replace(matches: _Matches, count: int) -> Flags:
    """(D,) bool: detections that stay when each one that stays removes those it replaces.

    The greedy rule in rounds: whoever nobody undecided could replace any more, stays.
    """
    first, second = matches.first[matches.replaces], matches.second[matches.replaces]
    dropped, undecided = np.zeros(count, bool), np.ones(count, bool)
    while undecided.any():
        threatened = np.zeros(count, bool)
        threatened[second] = True
        stays = undecided & ~threatened
        dropped[second[stays[first]]] = True
        undecided &= threatened & ~dropped
        open_match = undecided[second] & undecided[first]
        first, second = first[open_match], second[open_match]
    return ~dropped


@dataclass(frozen=True)
class _Objects:
    """What the detections that stay are pieces of.

    kept: (D,) bool, those that stay.
    best: (D,) position of the best piece of the object that each belongs to.
    """

    kept: Flags
    best: Ints

    @property
    def index(self) -> Ints:
        """Positions of the best pieces, one an object."""
        return np.flatnonzero(self.kept & (self.best == np.arange(len(self.best))))


def _unite(matches: _Matches, kept: Flags) -> _Objects:
    """Pieces that match, directly or through others, are one object."""
    pieces = ~matches.replaces & kept[matches.first] & kept[matches.second]
    first, second = matches.first[pieces], matches.second[pieces]
    best = np.arange(len(kept))
    while (best[first] != best[second]).any():
        lowest = np.minimum(best[first], best[second])
        np.minimum.at(best, best[first], lowest)
        np.minimum.at(best, best[second], lowest)
        best = best[best]
    return _Objects(kept, best)


def _gather(pool: Pool, matches: _Matches, objects: _Objects, size: tuple[int, int]) -> Detections:
    """One detection for each object, in the order of the pool."""
    corners, scores, mask_scores = (
        column.copy() for column in (pool.boxes.corners, pool.scores, pool.mask_scores)
    )
    views = matches.replaces & matches.agree & objects.kept[matches.first]
    pieces = np.flatnonzero(objects.kept)
    best = objects.best[pieces]
    for stays, other in ((matches.first[views], matches.second[views]), (best, pieces)):
        np.maximum.at(scores, stays, scores[other])
        np.maximum.at(mask_scores, stays, mask_scores[other])
    np.minimum.at(corners[:, :2], best, corners[pieces, :2])
    np.maximum.at(corners[:, 2:], best, corners[pieces, 2:])
    index = objects.index
    masks = None if pool.masks is None else _united_masks(pool.masks, objects)
    return Detections(
        boxes=torch.from_numpy(corners[index].astype(np.float32)),
        scores=torch.from_numpy(scores[index]),
        labels=torch.from_numpy(pool.boxes.labels[index]),
        size=size,
        masks=masks,
        mask_scores=None if masks is None else torch.from_numpy(mask_scores[index]),
    )


def _united_masks(masks: tuple[Rle, ...], objects: _Objects) -> tuple[Rle, ...]:
    """The mask of each object: that of its only piece, or the union of all."""
    pieces: dict[int, list[Rle]] = defaultdict(list)
    for member in np.flatnonzero(objects.kept).tolist():
        pieces[int(objects.best[member])].append(masks[member])
    return tuple(
        rle.union(each) if len(each) > 1 else each[0] for _, each in sorted(pieces.items())
    )


def _audit(
    pool: Pool,
    overlaps: Overlaps,
    matches: _Matches,
    objects: _Objects,
    detections: Detections,
) -> SeamAudit:
    index, kept = objects.index, objects.kept
    both = kept[matches.first] & (matches.replaces | kept[matches.second])
    first, second = objects.best[matches.first[both]], matches.second[both]
    confirmed, at_seam = np.zeros(len(kept), bool), pool.is_cut
    confirmed[first] = True
    at_seam[first[pool.is_cut[second]]] = True
    in_overlap = overlaps.in_overlap[index]
    doubled = find_doubled(detections).numpy()
    return SeamAudit(
        found=len(kept),
        objects=len(index),
        in_overlaps=int(in_overlap.sum()),
        confirmed=int((confirmed[index] & in_overlap).sum()),
        doubled_in_overlaps=int((doubled & in_overlap).sum()),
        doubled_elsewhere=int((doubled & ~in_overlap).sum()),
        at_seams=int(at_seam[index].sum()),
        open_at_seams=int((pool.is_cut & ~confirmed)[index].sum()),
    )
