"""The network on a GPU: it finds what the official code found, and learns what a CPU learns."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from d2det.checkpoints.official import convert
from d2det.inference.preprocess import resize_image, resized_size, to_batch
from d2det.models.build import build_detector
from d2det.models.depthwise import DepthwiseConv2d
from d2det.models.losses import reduce_losses
from d2det.models.prepare import prepare_for_inference
from d2det.presets import get_preset
from d2det.structures import ImageBatch, TrainingBatch
from tests.d2det.models.small import pictures, small_detector
from tests.d2det.models.test_learning import CONFIGS, batch, gradients, network
from tests.d2det.models.test_official_traces import match
from tests.oracle import trace as oracle

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture(autouse=True)
def _exact_float32() -> Iterator[None]:
    """Otherwise convolutions round float32 to TensorFloat-32, which is not the question here."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize(
    ("preset_name", "recipe", "stem"),
    [
        ("d2det_r50", "r50_detection", "oracle_r50det_generated"),
        ("d2det_r101_instance", "r101_instance", "oracle_r101inst_generated"),
    ],
)
def test_the_official_detections_are_found(preset_name: str, recipe: str, stem: str) -> None:
    trace, preset = oracle.generated(preset_name, recipe, stem), get_preset(preset_name)
    model = build_detector(preset.model)
    model.load_state_dict(convert(oracle.official_state(recipe), preset, recipe))
    prepare_for_inference(model.cuda())
    size = resized_size(*trace.picture.shape[:2], 400, 667)
    images = to_batch([resize_image(trace.picture, size)], preset.input)
    with torch.no_grad():
        (found,) = model.detect(images.to(torch.device("cuda")))
    boxes, scores = trace.boxes("final_boxes_input")
    theirs = boxes, scores, trace["final_labels_input"].long()
    ours = found.boxes.cpu(), found.scores.cpu(), found.labels.cpu()
    index = match(ours, theirs)
    assert (ours[0][index] - theirs[0]).abs().max() <= 0.02
    assert (ours[1][index] - theirs[1]).abs().max() <= 1e-4
    if found.mask_scores is not None:
        wanted = trace["final_mask_scores_input"]
        assert (found.mask_scores.cpu()[index] - wanted).abs().max() <= 1e-3


def on_gpu(members: list[int]) -> TrainingBatch:
    moved = batch(members).to(torch.device("cuda"))
    assert moved.images.pixels.dtype == torch.float64
    return moved


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("members", [[], [1], [0, 2, 5]], ids=str)
def test_losses_and_gradients_are_those_of_the_cpu(name: str, members: list[int]) -> None:
    results: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    for device, examples in (("cpu", batch(members)), ("cuda", on_gpu(members))):
        model = network(CONFIGS[name]).to(device)
        losses = reduce_losses(model.loss_terms(examples), lambda counts: counts)
        sum(losses.values()).backward()
        results.append((losses, gradients(model)))
    (cpu_losses, cpu_grads), (losses, grads) = results
    for loss, value in cpu_losses.items():
        torch.testing.assert_close(losses[loss].cpu(), value, atol=1e-10, rtol=1e-7)
    for parameter, wanted in cpu_grads.items():
        error = (grads[parameter].cpu() - wanted).norm()
        assert error <= 1e-6 * wanted.norm() + 1e-12, parameter


def test_a_batch_gives_what_its_pictures_give_alone() -> None:
    model = prepare_for_inference(small_detector().cuda())
    images = pictures((96, 128), (64, 100), (128, 70)).to(torch.device("cuda"))
    with torch.no_grad():
        together = model.detect(images)
        for i, found in enumerate(together):
            part = slice(i, i + 1)
            (wanted,) = model.detect(ImageBatch(images.pixels[part], images.sizes[part]))
            assert len(wanted.boxes)
            assert torch.equal(found.labels, wanted.labels)
            torch.testing.assert_close(found.boxes, wanted.boxes, atol=1e-3, rtol=0)
            torch.testing.assert_close(found.scores, wanted.scores, atol=1e-4, rtol=0)


def test_a_depthwise_layer_computes_what_the_usual_one_does() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 96, 20, 28, device="cuda").contiguous(memory_format=torch.channels_last)
    results = []
    for stride in (1, 2):
        ours = DepthwiseConv2d(96, 3, stride=stride).cuda().to(memory_format=torch.channels_last)
        for layer in (
            ours,
            partial(F.conv2d, weight=ours.weight, padding=1, stride=stride, groups=96),
        ):
            mine = x.clone().requires_grad_()
            y = layer(mine)
            (gradient,) = torch.autograd.grad(y.square().sum(), mine)
            results.append((y, gradient))
        assert results[-2][0].is_contiguous(memory_format=torch.channels_last)
        for got, wanted in zip(results[-2], results[-1], strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_a_new_size_costs_a_depthwise_layer_nothing() -> None:
    """cuDNN would compile a kernel for each: by its own kernel's name, not by the clock."""
    layer = DepthwiseConv2d(96, 3).to("cuda", torch.bfloat16).to(memory_format=torch.channels_last)
    x = torch.randn(2, 96, 22, 34, device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        layer(x).sum().backward()
    names = {event.key for event in seen.key_averages()}
    assert "aten::_conv_depthwise2d" in names
    assert not any("cudnn" in name for name in names)
