"""How well the windows of a scene agree where they overlap: doubled, split and missed objects."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from d2det.structures import Detections
from d2det_ops import nms

_DOUBLE_IOS = 0.7
"""An object is double when a better one of its class covers more of it than this, or reversely."""


@dataclass(frozen=True)
class SeamAudit:
    """Counts over one scene, or over several added up. Objects are merged detections.

    found: detections of all windows before merging.
    objects: detections after it.
    in_overlaps: objects whose centre lies in more than one window.
    confirmed: of those, found by more than one window.
    doubled_in_overlaps: of those, still covered by a better object of their class.
    doubled_elsewhere: objects outside overlaps of which that is true; what the detector does alone.
    at_seams: objects that an edge of a window cuts.
    open_at_seams: of those, neither seen whole nor joined: halves, perhaps.
    """

    found: int = 0
    objects: int = 0
    in_overlaps: int = 0
    confirmed: int = 0
    doubled_in_overlaps: int = 0
    doubled_elsewhere: int = 0
    at_seams: int = 0
    open_at_seams: int = 0

    def __add__(self, other: SeamAudit) -> SeamAudit:
        return SeamAudit(
            *(getattr(self, field.name) + getattr(other, field.name) for field in fields(self))
        )

    @property
    def agreement(self) -> float:
        """Share of the objects in overlaps that more than one window found; 1 without any."""
        return self.confirmed / self.in_overlaps if self.in_overlaps else 1.0

    @property
    def double_rate(self) -> float:
        """Share of the objects in overlaps that are doubled; compare with `usual_double_rate`."""
        return self.doubled_in_overlaps / self.in_overlaps if self.in_overlaps else 0.0

    @property
    def usual_double_rate(self) -> float:
        """Share of the objects outside overlaps that are doubled."""
        elsewhere = self.objects - self.in_overlaps
        return self.doubled_elsewhere / elsewhere if elsewhere else 0.0

    @property
    def split_rate(self) -> float:
        """Share of the objects at seams that remain open there."""
        return self.open_at_seams / self.at_seams if self.at_seams else 0.0


def find_doubled(found: Detections) -> torch.Tensor:
    """Returns (D,) bool: detections that a better one of their class covers, or that cover it."""
    doubled = torch.ones(len(found), dtype=torch.bool)
    doubled[nms(found.boxes, found.scores, _DOUBLE_IOS, groups=found.labels, metric="ios")] = False
    return doubled
