"""Pairs of detections and objects."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from d2det.evaluation import overlaps
from d2det.evaluation.overlaps import find_pairs
from d2det.evaluation.results import read_detections, read_ground_truth
from tests.d2det.evaluation.made import made_annotations, made_results


def _all_pairs(truth, table, *, kind: str, partners: str, min_iou: float) -> dict:
    """Every pair, one at a time, by pycocotools."""
    pairs = {}
    for d in range(len(table)):
        for g in range(len(truth)):
            same = table.label[d] == truth.label[g]
            if table.image[d] != truth.image[g] or same != (partners == "same"):
                continue
            regions = (
                (table.boxes[d : d + 1], truth.boxes[g : g + 1])
                if kind == "bbox"
                else ([table.masks[d]], [truth.masks[g]])
            )
            iou = coco_mask.iou(*regions, [int(truth.crowd[g])])[0, 0]
            if iou >= min_iou:
                pairs[d, g] = iou
    return pairs


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("partners", ["same", "other"])
@pytest.mark.parametrize("min_iou", [0.1, 0.5, 0.75])
def test_pairs_are_those_of_a_loop_over_everything(kind, partners, min_iou) -> None:
    annotations = made_annotations(1)
    truth = read_ground_truth(annotations)
    table = read_detections(made_results(annotations, 1, count=120), truth)
    pairs = find_pairs(table, truth, min_iou=min_iou, kind=kind, partners=partners)
    expected = _all_pairs(truth, table, kind=kind, partners=partners, min_iou=min_iou)
    own = {(d, g): i for d, g, i in zip(pairs.detection, pairs.object, pairs.iou, strict=True)}
    assert own == expected
    np.testing.assert_array_equal(pairs.shared, truth.crowd[pairs.object])


@pytest.mark.parametrize("max_pairs", [1, 7, 100])
def test_pairs_do_not_depend_on_the_block_size(monkeypatch, max_pairs) -> None:
    annotations = made_annotations(2)
    truth = read_ground_truth(annotations)
    table = read_detections(made_results(annotations, 2), truth)
    whole = find_pairs(table, truth, min_iou=0.5)
    monkeypatch.setattr(overlaps, "MAX_PAIRS", max_pairs)
    in_blocks = find_pairs(table, truth, min_iou=0.5)
    assert len(whole)
    for name in ("detection", "object", "iou", "shared"):
        np.testing.assert_array_equal(getattr(in_blocks, name), getattr(whole, name))


def test_boxes_without_area_overlap_nothing() -> None:
    annotations = made_annotations(0)
    truth = read_ground_truth(annotations)
    rows = [
        {**row, "bbox": [*row["bbox"][:2], 0, size]}
        for row, size in zip(made_results(annotations, 0, count=2), (0, 10), strict=True)
    ]
    assert len(find_pairs(read_detections(rows, truth), truth, min_iou=0.01)) == 0


@pytest.mark.parametrize("offset", [-1e5, -70.5, 0.0, 1e6])
def test_boxes_anywhere_meet_their_objects(offset) -> None:
    annotations = made_annotations(3)
    for row in annotations["annotations"]:
        row["bbox"][0] += offset
    truth = read_ground_truth(annotations)
    table = read_detections(made_results(annotations, 3, count=100), truth)
    pairs = find_pairs(table, truth, min_iou=0.3)
    expected = _all_pairs(truth, table, kind="bbox", partners="same", min_iou=0.3)
    assert len(expected) > 20
    assert set(zip(pairs.detection, pairs.object, strict=True)) == set(expected)
