"""The regression head's losses and gradients, against the released code on fixed features."""

import json
import zlib

import numpy as np
import pytest
import torch
from torch import Tensor

from d2det.boxes import elementwise_iou, from_inclusive
from d2det.config import RegressionConfig
from d2det.models.dense_regression import DenseRegression, cell_boxes
from d2det.models.learning import dense_terms
from d2det.models.losses import reduce_losses
from d2det.models.targets import overlap_cells
from tests.shared import shared_dir

NAMES = {"gn": "norm", "D2Det_reg": "offsets", "D2Det_mask": "overlap"}
"""Where the released names of parameters differ from ours."""


def drawn(name: str, shape: tuple[int, ...], loc: float, scale: float, seed: int) -> Tensor:
    key = zlib.crc32(name.encode()) + seed
    raw = np.random.Philox(key=key).random_raw(int(np.prod(shape)))
    uniform = (raw >> np.uint64(40)).astype(np.float64) * 2.0**-24
    values = loc + scale * np.sqrt(3.0) * (2.0 * uniform - 1.0)
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def ours(name: str) -> str:
    return ".".join(NAMES.get(part, part) for part in name.split("."))


@pytest.fixture(scope="module")
def released() -> dict:
    numbers = json.loads(shared_dir("oracle", "train_head_r50det.json").read_text())
    with np.load(shared_dir("oracle", "train_head_r50det.npz")) as file:
        return numbers | {name: torch.from_numpy(file[name]) for name in file}


@pytest.fixture(scope="module")
def head() -> DenseRegression:
    spec = json.loads(shared_dir("oracle", "d2det_r50_detection_names.json").read_text())
    weights = {}
    for parameter in spec["params"]:
        name, shape = parameter["name"], tuple(parameter["shape"])
        if not name.startswith("D2Det_head."):
            continue
        if name in spec["overrides"]:
            value = torch.tensor(spec["overrides"][name]).view(shape)
        elif parameter["kind"] == "const":
            value = torch.full(shape, parameter["loc"])
        else:
            value = drawn(name, shape, parameter["loc"], parameter["scale"], spec["seed"])
        weights[ours(name.removeprefix("D2Det_head."))] = value
    head = DenseRegression(256, RegressionConfig())
    head.load_state_dict(weights)
    return head


@pytest.fixture(scope="module")
def features() -> Tensor:
    return drawn("train:reg_feats", (24, 256, 14, 14), 0.2, 1.0, seed=1)


def losses_of(head: DenseRegression, features: Tensor, released: dict, cell_loss: str) -> dict:
    boxes = from_inclusive(released["pos_boxes"])
    gt_boxes = from_inclusive(released["gt_boxes"])[released["pos_gt_inds"].long()]
    config = RegressionConfig(cell_loss=cell_loss)
    head.zero_grad()
    terms = dense_terms(head(features), boxes, gt_boxes, overlap_cells(boxes, gt_boxes), config)
    return reduce_losses(terms, torch.clone)


def close(value: Tensor | float, expected: float) -> None:
    assert float(torch.as_tensor(value).detach()) == pytest.approx(expected, rel=1e-4)


def test_predictions_and_targets(head: DenseRegression, features: Tensor, released: dict) -> None:
    boxes = from_inclusive(released["pos_boxes"])
    gt_boxes = from_inclusive(released["gt_boxes"])[released["pos_gt_inds"].long()]
    cells = overlap_cells(boxes, gt_boxes)
    assert torch.equal(cells, released["target_masks"].bool())
    prediction = head(features)
    torch.testing.assert_close(prediction.offsets, released["pred_reg"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        prediction.overlap, released["pred_mask_logits"], rtol=1e-4, atol=1e-4
    )


def test_cell_ious(head: DenseRegression, features: Tensor, released: dict) -> None:
    boxes = from_inclusive(released["pos_boxes"])
    gt_boxes = from_inclusive(released["gt_boxes"])[released["pos_gt_inds"].long()]
    cells = cell_boxes(boxes, head(features).offsets)
    got = elementwise_iou(cells, gt_boxes[:, None, None, :]).flatten()
    torch.testing.assert_close(got, released["cell_iou"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", ["loss_reg", "total"])
def test_released_losses_and_gradients(
    part: str, head: DenseRegression, features: Tensor, released: dict
) -> None:
    losses = losses_of(head, features, released, "released")
    close(losses["dense_reg"], released["loss_reg_released"])
    close(losses["overlap"], released["loss_mask"])
    close(losses["dense_reg"] + losses["overlap"], released["total"])
    loss = losses["dense_reg"] if part == "loss_reg" else sum(losses.values())
    loss.backward()
    check_gradients(head, released, f"{part}_released")


def test_per_cell_loss_and_gradients(
    head: DenseRegression, features: Tensor, released: dict
) -> None:
    losses = losses_of(head, features, released, "per_cell")
    close(losses["dense_reg"], released["loss_reg_cellmasked_over_sum_x2"])
    # The stored gradients are those of the mean over all cells, also the masked ones.
    masked = losses["dense_reg"] * released["mask_mean"]
    close(masked, released["loss_reg_cellmasked_x2"])
    masked.backward()
    check_gradients(head, released, "loss_reg_cellmasked")


def check_gradients(head: DenseRegression, released: dict, prefix: str) -> None:
    stored = {key: value for key, value in released.items() if prefix in key and "grad" in key}
    assert len(stored) >= 6
    for key, expected in stored.items():
        kind, name = key.split(f"_{prefix}_")
        gradient = head.get_parameter(ours(name)).grad
        if expected is None:
            assert gradient is None or not gradient.any()
        elif kind == "gradnorm":
            close(gradient.norm(), expected)
        else:
            torch.testing.assert_close(gradient, torch.tensor(expected), rtol=1e-4, atol=1e-4)
