"""Tiles beside scenes."""

from __future__ import annotations

import pytest

from d2det.evaluation.results import read_detections, read_ground_truth
from d2det.evaluation.stitched import evaluate_tiles_and_scenes
from tests.d2det.evaluation.made import found, one_class, truth_row


def test_an_object_halved_at_a_seam_shows_only_in_the_scene() -> None:
    tiles = read_ground_truth(
        one_class([truth_row(0, 1, [80, 20, 20, 40]), truth_row(1, 1, [0, 20, 20, 40])])
    )
    halves = [found(0, [80, 20, 20, 40], 0.9), found(1, [0, 20, 20, 40], 0.9)]
    scene = read_ground_truth(one_class([truth_row(0, 1, [80, 20, 40, 40])], images=1))
    unmerged = [found(0, [80, 20, 20, 40], 0.9), found(0, [100, 20, 20, 40], 0.9)]
    both = evaluate_tiles_and_scenes(
        (tiles, read_detections(halves, tiles)), (scene, read_detections(unmerged, scene))
    )
    rows = {name: (tile, whole) for name, tile, whole in both.rows()}
    assert rows["bbox/AP75"] == (pytest.approx(1), 0)
    assert "bbox/AR500" not in rows
