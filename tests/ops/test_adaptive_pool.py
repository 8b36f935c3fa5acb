"""adaptive_pool against the official layer's numbers."""

import torch
import torch.nn.functional as F

from d2det_ops import adaptive_pool
from tests.oracle.ops import case, drawn


def test_pooling_equals_the_official_layer() -> None:
    x = drawn("awp.in", (5, 8, 14, 14), 0.3, 1.0)
    logits = F.conv2d(x, drawn("awp.conv.weight", (8, 8, 3, 3), 0, 0.15), padding=1)
    weight, bias = drawn("awp.bn.weight", (8,), 0.6, 0.2), drawn("awp.bn.bias", (8,), 0, 0.3)
    out = adaptive_pool(x, logits, weight, bias)
    torch.testing.assert_close(out, case("awp_out"), atol=2e-5, rtol=1e-4)
