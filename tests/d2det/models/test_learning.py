"""Training the whole network: gradients, empty batches and the cut of a batch over ranks."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from d2det.config import (
    BackboneConfig,
    ClassificationConfig,
    MaskConfig,
    ModelConfig,
    RegressionConfig,
    RoiPoolingConfig,
    RoiSamplerConfig,
    RpnConfig,
)
from d2det.models.build import build_detector
from d2det.models.detector import D2Det
from d2det.models.losses import LossTerm, reduce_losses
from d2det.structures import CroppedMasks, ImageBatch, Target, TrainingBatch

SIZE = 128
GTS = (3, 0, 8, 1, 0, 5)
"""Objects in each picture."""


def small(mask: bool, **regression: object) -> ModelConfig:
    return ModelConfig(
        num_classes=4,
        backbone=BackboneConfig(kind="mobilenet_v2", frozen_stages=1, fpn_channels=16),
        rpn=RpnConfig(train_top_n=60, samples_per_image=32),
        roi_sampler=RoiSamplerConfig(samples_per_image=24),
        roi_pooling=RoiPoolingConfig(samples_per_bin=1, offset_hidden=16),
        classification=ClassificationConfig(hidden=32),
        regression=RegressionConfig(
            **{"channels": 16, "num_convs": 2, "norm_groups": 4, "hidden": 16} | regression
        ),
        mask=MaskConfig(channels=16, scoring_hidden=16) if mask else None,
    )


def network(config: ModelConfig) -> D2Det:
    torch.manual_seed(0)
    model = build_detector(config).double().train()
    for parameter in model.parameters():  # no layer may be dead because it starts at zero
        parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def target(index: int) -> Target:
    generator = torch.Generator().manual_seed(index)
    count = GTS[index]
    low = torch.randint(0, SIZE - 50, (count, 2), generator=generator)
    size = torch.randint(10, 50, (count, 2), generator=generator)
    pixels = torch.rand(int(size.prod(1).sum()), generator=generator) < 0.8
    areas = size.prod(1)
    masks = CroppedMasks(pixels.byte(), torch.cat((low, size), 1), areas.cumsum(0) - areas)
    labels = torch.randint(0, 4, (count,), generator=generator)
    return Target(torch.cat((low, low + size), 1).float(), labels, masks)


def batch(members: Sequence[int]) -> TrainingBatch:
    pictures = torch.randn(6, 3, SIZE, SIZE, generator=torch.manual_seed(1), dtype=torch.float64)
    sizes = torch.tensor([[SIZE, SIZE], [SIZE, 100], [110, SIZE]] * 2)
    index = list(members)
    return TrainingBatch(
        ImageBatch(pictures[index], sizes[index]),
        tuple(target(i) for i in index),
        tuple(1000 + i for i in index),
    )


def gradients(model: D2Det) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def train_step(model: D2Det, cut: Sequence[Sequence[int]]) -> tuple[dict, dict[str, Tensor]]:
    """Losses and gradients, each summed over ranks that hold the pictures of `cut`."""
    ranks: list[dict[str, LossTerm]] = [model.loss_terms(batch(members)) for members in cut]
    total = sum(torch.stack([term.counts for term in terms.values()]) for terms in ranks)
    model.zero_grad()
    losses: dict[str, float] = {}
    for terms in ranks:
        shares = reduce_losses(terms, lambda _: total)
        sum(shares.values()).backward()
        for name, share in shares.items():
            losses[name] = losses.get(name, 0.0) + float(share.detach())
    return losses, {name: grad.clone() for name, grad in gradients(model).items()}


CONFIGS = {
    "instance": small(mask=True),
    "detection": small(mask=False, cell_loss="released"),
    "baseline": small(mask=False, kind="delta"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(name: str) -> None:
    model = network(CONFIGS[name])
    losses, whole = train_step(model, [range(6)])
    for cut in (
        [[0, 1, 2], [3, 4, 5]],
        [[0, 1, 2, 3], [4, 5]],
        [[0, 1, 2], [3, 4], [5]],
        [range(6), []],
        [[1], [0, 2, 3, 5], [4]],
    ):
        parts, summed = train_step(model, cut)
        assert parts == pytest.approx(losses, rel=1e-5, abs=1e-12)
        for parameter, gradient in whole.items():
            error = (summed[parameter] - gradient).norm()
            assert error <= 1e-5 * gradient.norm() + 1e-12, (cut, parameter)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("members", [[], [1], [1, 4], [0, 1]], ids=str)
def test_every_rank_reaches_every_parameter(name: str, members: list[int]) -> None:
    model = network(CONFIGS[name])
    losses, reached = train_step(model, [members])
    assert all(gradient is not None for gradient in reached.values())
    assert all(gradient.isfinite().all() for gradient in reached.values())
    assert all(loss == 0 for loss in losses.values()) == (members == [])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("instance", "rpn_cls rpn_box cls dense_reg overlap mask mask_iou"),
        ("detection", "rpn_cls rpn_box cls dense_reg overlap"),
        ("baseline", "rpn_cls rpn_box cls box_reg"),
    ],
)
def test_names_of_the_losses_are_the_same_with_and_without_objects(
    name: str, expected: str
) -> None:
    model = network(CONFIGS[name])
    for members in ([0, 2], [1], []):
        assert list(model.loss_terms(batch(members))) == expected.split()


def test_an_instance_model_refuses_pictures_without_masks() -> None:
    model = network(CONFIGS["instance"])
    full = batch([0, 2])
    bare = Target(full.targets[1].boxes, full.targets[1].labels)
    mixed = TrainingBatch(full.images, (full.targets[0], bare), full.image_keys)
    with pytest.raises(ValueError, match="1 of 2 pictures have no masks"):
        model.loss_terms(mixed)


def test_a_step_repeats_bit_for_bit() -> None:
    model = network(CONFIGS["instance"])
    first, second = (train_step(model, [[0, 1, 2]]) for _ in range(2))
    assert first[0] == second[0]
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
