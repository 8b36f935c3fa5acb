"""Windows merge into the scene: nothing double, nothing split, whatever the order."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from d2det.inference.merge import Merged, merge_windows
from d2det.inference.seams import SeamAudit
from d2det.inference.windows import Window, WindowDetections, cut_windows
from d2det.structures import Detections
from tests.d2det.inference.scenes import Scene, filled, look_everywhere, random_scene

SIZE = (600, 800)
seeds = st.integers(0, 10**6)


def detections(*rows: tuple[float, ...], size: tuple[int, int] = SIZE) -> Detections:
    """Rows are (x1, y1, x2, y2, score, label)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long(), size)


def rows(found: Detections) -> list[tuple[float, ...]]:
    return sorted(
        (*box, score, label)
        for box, score, label in zip(
            found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        )
    )


def equal(one: Merged, other: Merged) -> bool:
    a, b = one.detections, other.detections
    return (
        torch.equal(a.boxes, b.boxes)
        and torch.equal(a.scores, b.scores)
        and torch.equal(a.labels, b.labels)
        and a.masks == b.masks
        and one.audit == other.audit
    )


def assert_is_the_scene(merged: Merged, scene: Scene, noise: float) -> None:
    """Each object once, its sides within the noise of any view."""
    found = merged.detections
    assert len(found) == len(scene.boxes)
    for box, label in zip(found.boxes.numpy(), found.labels.numpy(), strict=True):
        off = np.abs(scene.boxes - box).max(1)
        assert off.min() <= noise + 1e-3
        assert scene.labels[off.argmin()] == label


@given(seeds, st.integers(8, 60))
@settings(max_examples=20, deadline=None)
def test_objects_smaller_than_the_overlap_come_out_once_and_whole(seed: int, largest: int) -> None:
    scene = random_scene(seed, size=SIZE, count=40, largest=largest)
    merged = merge_windows(look_everywhere(scene, tile=200, overlap=70), SIZE)
    assert_is_the_scene(merged, scene, noise=1)
    assert merged.audit.double_rate == merged.audit.split_rate == 0
    assert merged.audit.agreement == 1


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_objects_larger_than_the_overlap_are_joined(seed: int) -> None:
    scene = random_scene(seed, size=SIZE, count=6, largest=400)
    merged = merge_windows(look_everywhere_any_part(scene, tile=200, overlap=60), SIZE)
    assert_is_the_scene(merged, scene, noise=1)


def look_everywhere_any_part(scene: Scene, *, tile: int, overlap: int) -> list[WindowDetections]:
    """As `look_everywhere`, but the detector knows an object by any part of it."""
    parts = []
    for window in cut_windows(scene.size, tile=tile, overlap=overlap):
        frame = [window.x, window.y, window.x + window.width, window.y + window.height]
        low, high = np.maximum(scene.boxes, frame)[:, :2], np.minimum(scene.boxes, frame)[:, 2:]
        seen = (high - low > 3).all(1)
        table = [
            (*a, *b, 0.9, c)
            for a, b, c in zip(low[seen], high[seen], scene.labels[seen], strict=True)
        ]
        parts.append(WindowDetections(window, detections(*table, size=scene.size)))
    return parts


@given(seeds, st.randoms(use_true_random=False))
@settings(max_examples=12, deadline=None)
def test_the_order_of_windows_and_detections_is_irrelevant(seed: int, random: object) -> None:
    scene = random_scene(seed, size=(300, 300), count=20, largest=120)
    results = look_everywhere(scene, tile=128, overlap=32, noise=6, masks=True)
    shuffled = []
    for result in results:
        order = torch.tensor(
            random.sample(range(len(result.found)), len(result.found)), dtype=torch.long
        )
        shuffled.append(replace(result, found=result.found.select(order)))
    random.shuffle(shuffled)
    assert equal(merge_windows(results, scene.size), merge_windows(shuffled, scene.size))


@given(seeds)
@settings(max_examples=12, deadline=None)
def test_merging_is_idempotent(seed: int) -> None:
    scene = random_scene(seed, size=SIZE, count=30, largest=150)
    results = look_everywhere(scene, tile=200, overlap=60, noise=5)
    once = merge_windows(results, SIZE)
    whole = WindowDetections(Window(0, 0, *SIZE), once.detections)
    again = merge_windows([whole], SIZE)
    assert rows(again.detections) == rows(once.detections)
    assert torch.equal(again.detections.scores, once.detections.scores)
    doubled = merge_windows(results * 2, SIZE)
    assert rows(doubled.detections) == rows(once.detections)


@given(seeds, st.integers(0, 300), st.integers(0, 300))
@settings(max_examples=12, deadline=None)
def test_merging_moves_with_the_scene(seed: int, x: int, y: int) -> None:
    scene = random_scene(seed, size=SIZE, count=30, largest=150)
    results = look_everywhere(scene, tile=200, overlap=60, noise=5)
    size, shift = (SIZE[0] + y + 400, SIZE[1] + x + 400), torch.tensor([x, y, x, y]) + 100.0

    def embed(results: list[WindowDetections], shift: torch.Tensor) -> list[WindowDetections]:
        dx, dy = (int(v) for v in shift[:2])
        return [
            WindowDetections(
                replace(r.window, x=r.window.x + dx, y=r.window.y + dy),
                replace(r.found, boxes=r.found.boxes.double().add(shift).float(), size=size),
            )
            for r in results
        ]

    here = merge_windows(embed(results, torch.tensor([100.0] * 4)), size).detections
    there = merge_windows(embed(results, shift), size).detections
    assert torch.allclose(here.boxes + torch.tensor([x, y, x, y]), there.boxes, atol=1e-3)
    assert torch.equal(here.labels, there.labels)
    assert torch.equal(here.scores, there.scores)


LEFT, RIGHT = Window(0, 0, 100, 100), Window(0, 60, 100, 100)
PAIR_SIZE = (100, 160)


def merge_pair(left: Detections, right: Detections) -> Merged:
    return merge_windows([WindowDetections(LEFT, left), WindowDetections(RIGHT, right)], PAIR_SIZE)


def pair_rows(*table: tuple[float, ...]) -> Detections:
    return detections(*table, size=PAIR_SIZE)


CASES = [
    pytest.param([], [], [], id="nothing"),
    pytest.param([(5, 5, 20, 20, 0.9, 0)], [], [(5, 5, 20, 20, 0.9, 0)], id="one window only"),
    pytest.param(
        [(70, 10, 90, 30, 0.8, 0)],
        [(71, 10, 90, 31, 0.9, 0)],
        [(71, 10, 90, 31, 0.9, 0)],
        id="both whole, the better one stays",
    ),
    pytest.param(
        [(70, 10, 90, 30, 0.8, 0)],
        [(71, 10, 90, 31, 0.9, 1)],
        [(70, 10, 90, 30, 0.8, 0), (71, 10, 90, 31, 0.9, 1)],
        id="other class",
    ),
    pytest.param(
        [(40, 10, 90, 30, 0.6, 0)],
        [(60, 10, 90, 30, 0.9, 0)],
        [(40, 10, 90, 30, 0.9, 0)],
        id="whole beats cut though it scores less, with the best view's score",
    ),
    pytest.param(
        [(40, 10, 65, 30, 0.9, 0)],
        [(60, 8, 75, 32, 0.3, 0)],
        [(40, 10, 65, 30, 0.9, 0)],
        id="a badly drawn corner goes with its object",
    ),
    pytest.param(
        [(20, 10, 100, 30, 0.6, 0)],
        [(60, 11, 140, 30, 0.9, 0)],
        [(20, 10, 140, 30, 0.9, 0)],
        id="larger than the overlap, united",
    ),
    pytest.param(
        [(20, 10, 100, 90, 0.6, 0)],
        [(60, 60, 140, 90, 0.9, 0)],
        [(20, 10, 140, 90, 0.9, 0)],
        id="a diagonal object, pieces of unlike height, united",
    ),
    pytest.param(
        [(20, 10, 100, 90, 0.6, 0)],
        [(65, 60, 80, 90, 0.9, 0)],
        [(20, 10, 100, 90, 0.6, 0), (65, 60, 80, 90, 0.9, 0)],
        id="a whole small one inside a large cut one stays",
    ),
    pytest.param(
        [(70, 10, 90, 30, 0.8, 0), (71, 11, 91, 31, 0.2, 0)],
        [],
        [(70, 10, 90, 30, 0.8, 0), (71, 11, 91, 31, 0.2, 0)],
        id="detections of one window are left alone",
    ),
    pytest.param(
        [(70, 10, 90, 30, 0.8, 0), (74, 10, 94, 30, 0.5, 0)],
        [(71, 10, 91, 30, 0.9, 0)],
        [(71, 10, 91, 30, 0.9, 0)],
        id="one view replaces every agreeing one of the other window",
    ),
    pytest.param(
        [(80, 10, 100, 30, 0.8, 0)], [], [(80, 10, 100, 30, 0.8, 0)], id="cut and never seen whole"
    ),
]


@pytest.mark.parametrize(("left", "right", "expected"), CASES)
def test_two_windows(left: list, right: list, expected: list) -> None:
    merged = merge_pair(pair_rows(*left), pair_rows(*right))
    assert rows(merged.detections) == rows(pair_rows(*expected))
    scores = merged.detections.scores
    assert torch.equal(scores, scores.sort(descending=True).values)


def test_masks_are_united_in_the_frame_of_the_scene() -> None:
    pieces = [(20, 10, 100, 30), (60, 11, 140, 30)]
    left, right = (
        replace(
            pair_rows((*box, 0.9, 0)), masks=(filled(box, PAIR_SIZE),), mask_scores=torch.ones(1)
        )
        for box in pieces
    )
    (mask,) = merge_pair(left, right).detections.masks
    expected = np.maximum(*(coco.decode(filled(box, PAIR_SIZE)) for box in pieces))
    assert np.array_equal(coco.decode(mask), expected)


def test_the_audit_counts_what_happened() -> None:
    left = pair_rows((5, 5, 20, 20, 0.9, 0), (70, 10, 90, 30, 0.8, 0), (80, 60, 100, 80, 0.7, 0))
    right = pair_rows((70, 10, 90, 30, 0.7, 0), (66, 40, 80, 50, 0.5, 1))
    audit = merge_pair(left, right).audit
    assert audit == SeamAudit(
        found=5, objects=4, in_overlaps=3, confirmed=1, at_seams=1, open_at_seams=1
    )
    assert audit.agreement == pytest.approx(1 / 3)
    assert audit.split_rate == 1
    assert (audit + audit).objects == 8
    assert SeamAudit().agreement == 1


def test_no_windows_give_an_empty_scene() -> None:
    assert len(merge_windows([], (10, 10)).detections) == 0
