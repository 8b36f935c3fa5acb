"""Cases of deform_roi_pool and adaptive_pool, at the sizes of a picture of 800 x 1333."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from measure import Case, Other  # keeps torch on one thread, hence first

import torch  # isort: skip
import torch.nn.functional as F
import torchvision
from torch import Tensor

from d2det_ops import adaptive_pool, deform_roi_pool, deform_roi_pool_reference

HEIGHT, WIDTH = 800, 1333
STRIDES = (4, 8, 16, 32)
ROIS, CHANNELS, BINS, SAMPLES = 512, 256, 14, 2


def cases(*, compiled: bool) -> Iterator[Case]:
    """Yields all cases; `compiled`: also against torch.compile, which takes minutes to warm up."""
    yield from roi_pooling()
    yield from adaptive_pooling(compiled)


def roi_pooling() -> Iterator[Case]:
    scene = Scene()
    nchw = [f.detach().contiguous() for f in scene.features]
    yield Case(
        "deform_roi_pool forward",
        scene.pool,
        {
            "gather twin": Other(scene.twin, wanted=20, rounds=3),
            "torchvision roi_align, same grid": Other(partial(scene.torchvision, nchw), wanted=4),
        },
    )
    yield Case(
        "deform_roi_pool forward, NCHW maps",
        partial(scene.pool, nchw),
        {"torchvision roi_align, same grid": Other(partial(scene.torchvision, nchw))},
    )
    half = [f.detach().bfloat16() for f in scene.features]
    yield Case(
        "deform_roi_pool forward, bfloat16",
        partial(scene.pool, half),
        {"the same in float32": Other(scene.pool)},
    )
    yield Case(
        "RoIAlign of the regression branch forward",
        scene.align,
        {"torchvision roi_align": Other(partial(scene.torchvision, nchw), wanted=1)},
    )
    leaves = [f.requires_grad_() for f in nchw]
    torchvision_backward = backward(partial(scene.torchvision, leaves), leaves)
    yield Case(
        "RoIAlign of the regression branch backward",
        backward(scene.align, scene.features),
        {"torchvision roi_align": Other(torchvision_backward, wanted=1)},
        rounds=5,
    )
    wanted = (*scene.features, scene.offsets)
    yield Case(
        "deform_roi_pool backward",
        backward(scene.pool, wanted),
        {
            "gather twin": Other(backward(scene.twin, wanted), wanted=15, rounds=3),
            "torchvision roi_align, same grid": Other(torchvision_backward),
        },
        rounds=5,
    )


def adaptive_pooling(compiled: bool) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    shape = (ROIS, CHANNELS, BINS, BINS)
    nchw = [torch.randn(shape, generator=generator).requires_grad_() for _ in range(2)]
    last = [t.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for t in nchw]
    affine = [torch.randn(CHANNELS, generator=generator).requires_grad_() for _ in range(2)]
    sides: dict[str, tuple[Callable[[], Tensor], list[Tensor], float]] = {
        "eager, channels-last": (partial(eager_adaptive_pool, *last, *affine), last, 4),
        "eager, NCHW": (partial(eager_adaptive_pool, *nchw, *affine), nchw, 4),
    }
    if compiled:
        torch._functorch.config.donated_buffer = False  # the graph is run backward repeatedly
        inductor = torch.compile(eager_adaptive_pool)
        sides["torch.compile, channels-last"] = (partial(inductor, *last, *affine), last, 1.8)
        sides["torch.compile, NCHW"] = (partial(inductor, *nchw, *affine), nchw, 1.8)
    for name, maps in (("", last), (", NCHW", nchw)):
        ours = partial(adaptive_pool, *maps, *affine)
        yield Case(
            f"adaptive_pool forward{name}",
            no_grad(ours),
            {k: Other(no_grad(run), wanted) for k, (run, _, wanted) in sides.items()},
        )
        yield Case(
            f"adaptive_pool backward{name}",
            backward(ours, [*maps, *affine]),
            {
                k: Other(backward(run, [*inputs, *affine]), wanted)
                for k, (run, inputs, wanted) in sides.items()
            },
            rounds=5,
        )


def kept_for_backward() -> dict[str, float]:
    """Returns how many maps (R, C, P, P) each side keeps between forward and backward."""
    inputs = [torch.randn(16, CHANNELS, BINS, BINS, requires_grad=True) for _ in range(2)]
    affine = [torch.randn(CHANNELS, requires_grad=True) for _ in range(2)]
    return {
        "ours": _maps_kept(partial(adaptive_pool, *inputs, *affine), inputs[0].nbytes),
        "eager": _maps_kept(partial(eager_adaptive_pool, *inputs, *affine), inputs[0].nbytes),
    }


def eager_adaptive_pool(x: Tensor, logits: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The layer as one would write it in PyTorch, with the library's fused instance norm."""
    gate = torch.exp(12 * torch.sigmoid(F.instance_norm(logits, weight=weight, bias=bias)))
    return F.avg_pool2d(x * gate, 3, 2, 1) / F.avg_pool2d(gate, 3, 2, 1)


class Scene:
    """P2..P5 of one picture, channels-last, and RoIs of 16 to 600 pixels a side."""

    def __init__(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)
        self.features = [
            torch.randn(
                1, CHANNELS, math.ceil(HEIGHT / s), math.ceil(WIDTH / s), generator=generator
            )
            .to(device, dtype, memory_format=torch.channels_last)
            .requires_grad_()
            for s in STRIDES
        ]
        low, high = math.log(16), math.log(600)
        half = torch.exp(torch.rand(ROIS, 2, generator=generator) * (high - low) + low) / 2
        size = torch.tensor([float(WIDTH), float(HEIGHT)])
        centre = torch.rand(ROIS, 2, generator=generator) * size
        boxes = torch.cat(((centre - half).clamp(min=0), torch.minimum(centre + half, size)), 1)
        self.rois = torch.cat((torch.zeros(ROIS, 1), boxes), 1).to(device)
        side = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
        self.levels = torch.log2(side / 56).floor().clamp(0, 3).long().to(device)
        offsets = torch.randn(ROIS, 2, BINS // 2, BINS // 2, generator=generator)
        self.offsets = offsets.to(device).requires_grad_()

    def pool(self, features: Sequence[Tensor] | None = None) -> Tensor:
        return deform_roi_pool(
            features or self.features, self.rois, self.levels, strides=STRIDES, output_size=BINS,
            samples=SAMPLES, offsets=self.offsets,
        )  # fmt: skip

    def twin(self) -> Tensor:
        return deform_roi_pool_reference(
            self.features, self.rois, self.levels, strides=STRIDES, output_size=BINS,
            samples=SAMPLES, offsets=self.offsets,
        )  # fmt: skip

    def align(self) -> Tensor:
        return deform_roi_pool(
            self.features, self.rois, self.levels, strides=STRIDES, output_size=BINS,
            samples=SAMPLES, sampling="align",
        )  # fmt: skip

    def torchvision(self, features: Sequence[Tensor]) -> Tensor:
        """RoIAlign level by level, moved by half a cell as the official convention needs it."""
        pooled = []
        for level, stride in enumerate(STRIDES):
            rois = self.rois[self.levels == level]
            rois = rois + rois.new_tensor([0, 1, 1, 1, 1]) * stride / 2
            pooled.append(
                torchvision.ops.roi_align(
                    features[level], rois, BINS, 1 / stride, SAMPLES, aligned=True
                )
            )
        return torch.cat(pooled)


def no_grad(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Returns `run` without gradients."""
    return torch.no_grad()(run)


def backward(run: Callable[[], Tensor], inputs: Sequence[Tensor]) -> Callable[[], object]:
    """Returns the backward alone: the graph is built once, at the first call."""
    graph: list[Tensor] = []

    def step() -> object:
        if not graph:
            out = run()
            graph.extend((out, torch.randn_like(out)))
        return torch.autograd.grad(graph[0], list(inputs), graph[1], retain_graph=True)

    return step


def _maps_kept(run: Callable[[], Tensor], map_bytes: int) -> float:
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    assert out.requires_grad
    return sum(kept.values()) / map_bytes
