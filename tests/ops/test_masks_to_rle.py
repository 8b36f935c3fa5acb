"""masks_to_rle against grid_sample, cv2, pycocotools and its twin."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torch import Tensor

from d2det_ops import Rle, masks_to_rle, masks_to_rle_reference, twins_only


def instances(
    count: int, seed: int, *, size: tuple[int, int] = (90, 120), cells: int = 28
) -> tuple[Tensor, Tensor]:
    """Returns smooth and noisy masks and boxes of all sizes, some of them across the border."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, 5, 5, generator=generator) * 4
    masks = F.interpolate(coarse, (cells, cells), mode="bicubic")[:, 0].sigmoid()
    masks[::3] = torch.rand(masks[::3].shape, generator=generator)
    side = torch.exp(torch.rand(count, 2, generator=generator) * 5.5 - 0.5)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([size[1], size[0]])
    return masks, torch.cat((centre - side / 2, centre + side / 2), 1)


def decode(rle: Rle) -> np.ndarray:
    pixels: np.ndarray = coco_mask.decode({"size": list(rle["size"]), "counts": rle["counts"]})
    return pixels


def canonical(pixels: np.ndarray) -> bytes:
    counts: bytes = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"]
    return counts


def released_paste(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns the official paste of one mask, as pixels of the picture."""
    x1, y1 = max(int(box[0]), 0), max(int(box[1]), 0)
    x2, y2 = min(int(box[2] - 1), width - 1), min(int(box[3] - 1), height - 1)
    w, h = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    pixels = np.zeros((height, width), np.uint8)
    part = pixels[y1 : y1 + h, x1 : x1 + w]
    part[...] = (cv2.resize(mask, (w, h)) > 0.5)[: part.shape[0], : part.shape[1]]
    return pixels


@pytest.mark.parametrize("seed", range(8))
def test_released_convention_equals_the_official_paste_encoded_by_pycocotools(seed: int) -> None:
    height, width = 90, 120
    masks, boxes = instances(30, seed)
    found = masks_to_rle(masks, boxes, height=height, width=width, convention="released")
    for rle, mask, box in zip(found, masks.numpy(), boxes.numpy(), strict=True):
        assert rle["counts"] == canonical(released_paste(mask, box, height, width))
        assert rle["size"] == (height, width)


def test_exact_convention_reads_what_grid_sample_reads() -> None:
    height, width = 90, 120
    masks, boxes = instances(40, 3)
    rles = masks_to_rle(masks, boxes, height=height, width=width)
    x, y = (torch.arange(side, dtype=torch.float64) + 0.5 for side in (width, height))
    for mask, box, rle in zip(masks.double(), boxes.double(), rles, strict=True):
        u, v = (x - box[0]) / (box[2] - box[0]) * 2 - 1, (y - box[1]) / (box[3] - box[1]) * 2 - 1
        grid = torch.stack(torch.broadcast_tensors(u[None, :], v[:, None]), -1)[None]
        value = F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0]
        differs = torch.from_numpy(decode(rle)).bool() != (value > 0.5)
        assert not (differs & ((value - 0.5).abs() > 1e-6)).any()


@pytest.mark.parametrize("convention", ["exact", "released"])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("cells", [1, 2, 7, 28, 31, 32, 100])
def test_compiled_equals_the_twin_byte_for_byte(
    convention: str, threshold: float, cells: int
) -> None:
    masks, boxes = instances(20, cells, cells=cells)
    options = {"height": 90, "width": 120, "threshold": threshold, "convention": convention}
    found = masks_to_rle(masks, boxes, **options)
    assert found == masks_to_rle_reference(masks, boxes, **options)
    assert [rle["counts"] for rle in found] == [canonical(decode(rle)) for rle in found]


@settings(max_examples=60, deadline=None)
@given(
    box=st.tuples(*[st.floats(-60, 60, width=32)] * 2, *[st.floats(-5, 80, width=32)] * 2),
    seed=st.integers(0, 9),
    convention=st.sampled_from(["exact", "released"]),
)
def test_any_box_equals_the_twin(
    box: tuple[float, float, float, float], seed: int, convention: str
) -> None:
    x, y, w, h = box
    boxes = torch.tensor([[x, y, x + w, y + h]])
    masks = instances(1, seed)[0]
    options = {"height": 40, "width": 30, "convention": convention}
    assert masks_to_rle(masks, boxes, **options) == masks_to_rle_reference(masks, boxes, **options)


@pytest.mark.parametrize(
    "box",
    [
        pytest.param([10, 10, 10, 30], id="no width"),
        pytest.param([30, 30, 10, 10], id="inverted"),
        pytest.param([500, 500, 600, 600], id="outside"),
        pytest.param([float("nan")] * 4, id="nan"),
        pytest.param([0, 0, float("inf"), 5], id="infinite"),
    ],
)
def test_boxes_without_pixels_give_an_empty_mask(box: list[float]) -> None:
    (rle,) = masks_to_rle(torch.ones(1, 28, 28), torch.tensor([box]), height=40, width=30)
    assert decode(rle).sum() == 0


def test_mask_that_fills_the_scene_is_one_run() -> None:
    box = torch.tensor([[-1000.0, -1000.0, 1000.0, 1000.0]])
    (rle,) = masks_to_rle(torch.ones(1, 28, 28), box, height=40, width=30)
    assert decode(rle).all()
    assert rle["counts"] == canonical(np.ones((40, 30)))


@pytest.mark.parametrize("convention", ["exact", "released"])
def test_window_offset_gives_what_the_shifted_box_gives(convention: str) -> None:
    masks, boxes = instances(20, 5)
    boxes = (boxes * 8).round() / 8  # so that the shifted corners are exact in float32
    options = {"height": 300, "width": 400, "convention": convention}
    shifted = masks_to_rle(masks, boxes + torch.tensor([64, 32, 64, 32]), **options)
    assert masks_to_rle(masks, boxes, origin=(64, 32), **options) == shifted


def test_scene_beyond_32_bit_pixels_keeps_exact_positions() -> None:
    height = width = 100_000  # 1e10 pixels: more than pycocotools can count
    box = torch.tensor([[99_990.0, 99_990.0, 100_000.0, 100_000.0]])
    (rle,) = masks_to_rle(torch.ones(1, 4, 4), box, height=height, width=width)
    with twins_only():
        assert masks_to_rle(torch.ones(1, 4, 4), box, height=height, width=width) == [rle]
    assert len(rle["counts"]) < 60


def test_no_mask_gives_no_encoding() -> None:
    assert masks_to_rle(torch.zeros(0, 28, 28), torch.zeros(0, 4), height=4, width=4) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_equal_their_float32_values(dtype: torch.dtype) -> None:
    masks, boxes = instances(10, 1)
    masks, boxes = masks.to(dtype), boxes.to(dtype)
    expected = masks_to_rle(masks.float(), boxes.float(), height=90, width=120)
    assert masks_to_rle(masks, boxes, height=90, width=120) == expected


def test_strided_inputs_equal_contiguous_ones() -> None:
    masks, boxes = instances(10, 1)
    strided = masks.transpose(1, 2).contiguous().transpose(1, 2)
    sliced = torch.cat((boxes, boxes), 1)[:, :4]
    assert masks_to_rle(strided, sliced, height=90, width=120) == masks_to_rle(
        masks, boxes, height=90, width=120
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"masks": torch.zeros(2, 28, 14)}, "masks"),
        ({"boxes": torch.zeros(3, 4)}, "boxes"),
        ({"height": 0}, "scene"),
        ({"threshold": -0.1}, "threshold"),
        ({"convention": "guess"}, "convention"),
    ],
)
def test_senseless_arguments_are_refused(change: dict[str, object], named: str) -> None:
    arguments = {
        "masks": torch.zeros(2, 28, 28),
        "boxes": torch.zeros(2, 4),
        "height": 5,
        "width": 5,
    }
    with pytest.raises(ValueError, match=named):
        masks_to_rle(**(arguments | change))
