"""nms against torchvision, its twin and the official code's numbers."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor

from d2det_ops import nms, nms_reference
from tests.oracle.ops import case, half_open


def scene(count: int, seed: int, spread: float = 300.0) -> tuple[Tensor, Tensor]:
    """Returns clustered boxes of mixed sizes and scores with many ties."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(max(count // 8, 1), 2, generator=generator) * spread
    centre = centres[torch.randint(0, len(centres), (count,), generator=generator)]
    centre = centre + torch.randn(count, 2, generator=generator) * 3
    size = torch.exp(torch.rand(count, 2, generator=generator) * 4)
    scores = torch.randint(0, 50, (count,), generator=generator) / 50
    return torch.cat((centre - size / 2, centre + size / 2), 1), scores


@pytest.mark.parametrize("threshold", [3, 5, 7])
def test_official_kept_boxes_are_the_same(threshold: int) -> None:
    dets = case("nms_dets").float()
    kept = nms(half_open(dets[:, :4]), dets[:, 4], threshold / 10)
    assert kept.sort().values.tolist() == case(f"nms_keep_{threshold}").tolist()


@pytest.mark.parametrize("seed", range(200))
def test_kept_indices_equal_torchvision(seed: int) -> None:
    count = [0, 1, 2, 17, 300, 1000][seed % 6]
    boxes, scores = scene(count, seed, spread=[30.0, 300.0, 3000.0][seed % 3])
    threshold = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0][seed % 7]
    assert torch.equal(nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))


@pytest.mark.parametrize("metric", ["iou", "ios"])
@pytest.mark.parametrize("max_keep", [None, 0, 5])
def test_compiled_equals_the_twin(metric: str, max_keep: int | None) -> None:
    boxes, scores = scene(400, 3)
    groups = torch.randint(0, 3, (400,), generator=torch.Generator().manual_seed(1))
    options = {"groups": groups, "metric": metric, "max_keep": max_keep}
    assert torch.equal(
        nms(boxes, scores, 0.4, **options), nms_reference(boxes, scores, 0.4, **options)
    )
