"""Box algebra, and the official convention where it shows."""

import numpy as np
import pytest
import torch

from d2det.boxes import from_inclusive, rescale
from tests.oracle.trace import FOLDER


@pytest.mark.parametrize("factor", [0.5, 1.25, 2.7])
def test_rescaling_is_undone_by_its_inverse(factor: float) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 20], [3.5, 4, 5, 6], [7, 7, 7, 7]])
    assert torch.allclose(rescale(rescale(boxes, factor), 1 / factor), boxes, atol=1e-5)


@pytest.mark.parametrize("stem", ["oracle_r50det_generated", "oracle_r101inst_generated"])
def test_official_boxes_go_from_the_resized_to_the_original_frame(stem: str) -> None:
    with np.load(FOLDER / f"{stem}.npz") as trace:
        resized, original = (
            from_inclusive(torch.from_numpy(trace[f"final_boxes_{frame}"][:, :4]))
            for frame in ("input", "orig")
        )
    assert torch.allclose(rescale(resized, 1 / 1.25), original, atol=1e-4)
