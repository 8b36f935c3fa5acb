"""deform_roi_pool against the official kernels' numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from d2det_ops import deform_roi_pool
from tests.oracle.ops import case, drawn, half_open

STRIDE = 8


def features() -> Tensor:
    return drawn("feat", (2, 8, 25, 34), 0, 1.0)


def pool(feature: Tensor, size: int, samples: int, **options: object) -> Tensor:
    rois = half_open(case("rois"))
    levels = torch.zeros(len(rois), dtype=torch.int64)
    return deform_roi_pool(
        [feature], rois, levels, strides=[STRIDE], output_size=size, samples=samples, **options
    )


@pytest.mark.parametrize("samples", [1, 2])
def test_pooling_without_offsets_equals_the_official_kernel(samples: int) -> None:
    expected = case(f"dpool_notrans_P3_S{samples}")
    torch.testing.assert_close(pool(features(), 3, samples), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("samples", [1, 2])
def test_pooling_with_offsets_equals_the_official_kernel(samples: int) -> None:
    out = pool(features(), 14, samples, offsets=case("offsets7"))
    torch.testing.assert_close(out[:12], case(f"dpool_trans_P14_S{samples}"), atol=2e-5, rtol=1e-5)
    sums = case(f"dpool_trans_P14_S{samples}_sum")
    torch.testing.assert_close(out.sum((1, 2, 3)), sums.to(out.dtype), atol=5e-3, rtol=1e-4)


def test_align_sampling_equals_the_official_roi_align() -> None:
    out = pool(features(), 14, 2, sampling="align")
    torch.testing.assert_close(out[:12], case("roialign_14_2"), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("samples", [1, 2])
def test_gradients_equal_the_official_kernel(samples: int) -> None:
    feature, offsets = features().requires_grad_(), case("offsets7").requires_grad_()
    out = pool(feature, 14, samples, offsets=offsets)
    out.backward(drawn("gradout", (40, 8, 14, 14), 0, 1.0))
    assert feature.grad is not None
    torch.testing.assert_close(
        feature.grad[:, :2], case(f"dpool_grad_feat_S{samples}"), atol=2e-4, rtol=1e-4
    )
    norm = case(f"dpool_grad_feat_norm_S{samples}").float()
    torch.testing.assert_close(feature.grad.norm()[None], norm, atol=0, rtol=1e-4)
    torch.testing.assert_close(
        offsets.grad, case(f"dpool_grad_off7_S{samples}"), atol=2e-3, rtol=1e-3
    )
