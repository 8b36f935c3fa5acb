import cv2
import numpy as np
import pytest
import torch
from pycocotools.mask import decode
from torch import Tensor

from d2det.models.mask_targets import (
    joined,
    mask_iou_targets,
    mask_targets,
    overlap_cells_of_masks,
)
from d2det.structures import CroppedMasks
from d2det_ops import masks_to_rle

HEIGHT, WIDTH = 150, 190


def canvases(count: int, seed: int) -> np.ndarray:
    """(count, HEIGHT, WIDTH) uint8 masks with slanted edges, holes and specks."""
    generator = np.random.default_rng(seed)
    masks = np.zeros((count, HEIGHT, WIDTH), np.uint8)
    for mask in masks:
        centre = generator.integers((0, 0), (WIDTH, HEIGHT)).tolist()
        axes = generator.integers(2, 60, 2).tolist()
        cv2.ellipse(mask, centre, axes, float(generator.uniform(0, 180)), 0, 360, 1, -1)
        cv2.circle(mask, centre, int(generator.integers(1, 12)), 0, -1)
        mask[generator.random(mask.shape) < 0.002] = 1
    return masks


def cropped(masks: np.ndarray) -> CroppedMasks:
    """The same masks, each in the rectangle around its pixels."""
    rectangles, pixels = [], []
    for mask in masks:
        x, y, w, h = cv2.boundingRect(mask)
        rectangles.append((x, y, w, h))
        pixels.append(mask[y : y + h, x : x + w].ravel())
    lengths = torch.tensor([len(p) for p in pixels])
    return CroppedMasks(
        torch.from_numpy(np.concatenate(pixels)),
        torch.tensor(rectangles).view(-1, 4),
        lengths.cumsum(0) - lengths,
    )


def random_boxes(count: int, seed: int) -> Tensor:
    """(count, 4) half-open boxes in the picture, of one pixel up to all of it."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([WIDTH, HEIGHT])
    low = torch.rand(count, 2, generator=generator) * (size - 1)
    high = low + 1 + torch.rand(count, 2, generator=generator) ** 2 * (size - 1 - low)
    return torch.cat((low, high), 1)


def released_crop(mask: np.ndarray, box: Tensor) -> np.ndarray:
    """What the released code resizes: its inclusive corners truncated to integers."""
    x1, y1, x2, y2 = (int(v) for v in (box - torch.tensor([0, 0, 1, 1])).tolist())
    return mask[y1 : y1 + max(y2 - y1 + 1, 1), x1 : x1 + max(x2 - x1 + 1, 1)]


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, CroppedMasks, Tensor, Tensor]:
    """Canvases, the same masks cropped, and boxes that look at them."""
    masks = canvases(30, seed=0)
    boxes = torch.cat((random_boxes(597, seed=1), torch.tensor([[7.0, 9, 63, 65]]).expand(3, 4)))
    owners = torch.randint(0, 30, (600,), generator=torch.manual_seed(2))
    return masks, cropped(masks), owners, boxes


def test_released_targets_are_those_of_crop_and_opencv_resize(scene: tuple) -> None:
    canvas, masks, owners, boxes = scene
    got = mask_targets(masks, owners, boxes, rounding="released")
    for target, owner, box in zip(got, owners.tolist(), boxes, strict=True):
        expected = cv2.resize(released_crop(canvas[owner], box), (28, 28))
        assert np.array_equal(target.numpy(), expected > 0)


def test_exact_targets_sample_the_mask_at_the_centres_of_the_very_box(scene: tuple) -> None:
    canvas, masks, owners, boxes = scene
    got = mask_targets(masks, owners, boxes)
    centres = (torch.arange(28) + 0.5) / 28
    x, y = (boxes[:, i, None] + centres * (boxes[:, i + 2] - boxes[:, i])[:, None] for i in (0, 1))
    across = (2 * x / WIDTH - 1)[:, None, :].expand(-1, 28, -1)
    down = (2 * y / HEIGHT - 1)[:, :, None].expand(-1, -1, 28)
    grid = torch.stack((across, down), -1)
    planes = torch.from_numpy(canvas)[owners, None].float()
    expected = torch.nn.functional.grid_sample(planes, grid, align_corners=False)[:, 0]
    wrong = got != (expected >= 0.5)
    assert ((expected[wrong] - 0.5).abs() < 1e-4).all()
    assert wrong.sum() < 1e-4 * got.numel()


def test_pasting_exact_targets_gives_the_masks_back_where_they_were() -> None:
    """Boxes at any fraction of a pixel: what is learnt must not move when it is pasted."""
    canvas = np.zeros((40, HEIGHT, WIDTH), np.uint8)
    generator = np.random.default_rng(6)
    for mask in canvas:
        centre = generator.integers((60, 60), (WIDTH - 60, HEIGHT - 60)).tolist()
        cv2.ellipse(mask, centre, (30, 12), float(generator.uniform(0, 180)), 0, 360, 1, -1)
    masks, owners = cropped(canvas), torch.arange(40)
    x, y, w, h = masks.rectangles.float().unbind(1)
    boxes = torch.stack((x, y, x + w, y + h), 1)
    boxes += torch.rand(40, 4, generator=torch.manual_seed(7)) * 3 - 1.5
    targets = mask_targets(masks, owners, boxes)
    pasted = masks_to_rle(targets.float(), boxes, height=HEIGHT, width=WIDTH)
    shifts = []
    for mask, rle in zip(canvas, pasted, strict=True):
        again = decode(dict(rle)).astype(bool)
        assert (again & (mask > 0)).sum() / (again | (mask > 0)).sum() > 0.9
        places = zip(again.nonzero(), mask.nonzero(), strict=True)
        shifts.append([a.mean() - b.mean() for a, b in places])
    assert np.abs(np.mean(shifts, 0)).max() < 0.1


def test_masks_of_several_pictures_join_object_after_object() -> None:
    canvas = canvases(9, seed=4)
    parts = [cropped(canvas[:4]), cropped(canvas[4:])]
    boxes, owners = random_boxes(50, seed=5), torch.arange(50) % 9
    assert torch.equal(
        mask_targets(joined(parts), owners, boxes), mask_targets(cropped(canvas), owners, boxes)
    )


def test_cells_are_on_the_object_from_three_of_four_middle_pixels(scene: tuple) -> None:
    _, masks, owners, boxes = scene
    targets = mask_targets(masks, owners, boxes)
    got = overlap_cells_of_masks(targets)
    middle = targets.view(-1, 7, 4, 7, 4)[:, :, 1:3, :, 1:3].sum((2, 4))
    assert torch.equal(got, middle >= 3)


def test_mask_iou_counts_the_object_outside_the_box(scene: tuple) -> None:
    """Against the released formula on canvases, box by box."""
    canvas, masks, owners, boxes = scene
    logits = torch.randn(len(boxes), 28, 28, generator=torch.manual_seed(3)) * 2
    targets = mask_targets(masks, owners, boxes)
    got = mask_iou_targets(logits, targets, masks, owners, boxes)
    for r, owner in enumerate(owners.tolist()):
        predicted, target = (logits[r] > 0.5).numpy(), targets[r].numpy()
        share = released_crop(canvas[owner], boxes[r]).sum() / (canvas[owner].sum() + 1e-7)
        area = target.sum() / (share + 1e-7)
        overlap = (predicted & target).sum()
        expected = max(overlap / (abs(predicted.sum() + area - overlap) + 1e-7), 0)
        assert float(got[r]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_perfect_mask_of_a_whole_object_has_iou_one() -> None:
    masks = CroppedMasks(
        torch.ones(56 * 56, dtype=torch.uint8), torch.tensor([[10, 20, 56, 56]]), torch.tensor([0])
    )
    boxes, owners = torch.tensor([[10.0, 20, 66, 76]]), torch.tensor([0])
    targets = mask_targets(masks, owners, boxes)
    assert targets.all()
    iou = mask_iou_targets(torch.full((1, 28, 28), 9.0), targets, masks, owners, boxes)
    assert float(iou) == pytest.approx(1, abs=1e-6)
