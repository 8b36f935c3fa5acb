"""The CUDA kernels against what their memory traffic costs and what else exists.

    python benchmarks/gpu.py [--only NAME ...] [--compile] [--json OUT]

Times are medians between CUDA events, sides in turn in one process. The floor of a kernel is the
time in which the card copies the bytes that must be read and written once: inputs, outputs, and a
map for each map's gradient. Selections and encodings have no floor worth the name: their data is
small and their time is launches. Our kernels on the CPU have one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import post_processing_ops  # keeps torch on one thread, hence first
import torch
import torchvision
from pooling_ops import BINS, CHANNELS, ROIS, Scene, backward, eager_adaptive_pool, no_grad
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from d2det_ops import (
    _library,
    adaptive_pool,
    assign_targets,
    assign_targets_reference,
    masks_to_rle,
    nms,
    soft_nms,
    soft_nms_reference,
)

SECONDS = 0.15
"""How long a side runs at least, once warm."""
SLOW_MS = 500
"""A side that takes longer runs in the first turn alone."""
IOU = 0.5
PICTURES = 16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

console = Console(width=130)
Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One piece of work: ours, the others', and the bytes that any way must move (0: no floor)."""

    name: str
    ours: Run
    others: dict[str, Run] = field(default_factory=dict)
    moved: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose names contain these")
    parser.add_argument("--compile", action="store_true", help="also against torch.compile")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/gpu.json"))
    args = parser.parse_args()
    if not torch.cuda.is_available() or _library.CUDA.error is not None:
        raise SystemExit(f"needs a GPU and the CUDA library: {_library.CUDA.error}")
    card = torch.cuda.get_device_name()
    rate = copy_rate()
    print(f"{card}, torch {torch.__version__}, copies {rate / 1e9:.0f} GB/s")
    chosen = (c for c in cases(args.compile) if any(part in c.name for part in args.only))
    report: dict[str, Any] = {"card": card, "torch": torch.__version__, "copy_bytes_per_s": rate}
    report["ops"] = [measured(case, rate) for case in chosen]
    show(report)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1))


def copy_rate() -> float:
    """Bytes a second, read and written, of copying 2 GB."""
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (median_ms(partial(target.copy_, source)) / 1e3)


def cases(compiled: bool) -> Iterator[Case]:
    """Yields all cases; `compiled`: also against torch.compile."""
    for name, dtype in DTYPES.items():
        yield from roi_pooling(name, dtype)
    for name, dtype in DTYPES.items():
        yield from adaptive_pooling(name, dtype, compiled)
    yield from selection()
    yield from encoding()
    yield from first_stage()


def roi_pooling(name: str, dtype: torch.dtype) -> Iterator[Case]:
    scene = Scene("cuda", dtype)
    nchw = [f.detach().contiguous().requires_grad_() for f in scene.features]
    maps = sum(f.nbytes for f in scene.features)
    pooled = ROIS * CHANNELS * BINS * BINS * scene.features[0].element_size()
    theirs = partial(scene.torchvision, nchw) if dtype == torch.float32 else None
    grid = {} if theirs is None else {"torchvision roi_align, same grid": no_grad(theirs)}
    yield Case(
        f"deform_roi_pool forward, {name}",
        no_grad(scene.pool),
        {"gather twin": no_grad(scene.twin), **grid},
        maps + pooled,
    )
    yield Case(f"RoIAlign forward, {name}", no_grad(scene.align), grid, maps + pooled)
    leaves = [*scene.features, scene.offsets]
    grid = {} if theirs is None else {"torchvision roi_align, same grid": backward(theirs, nchw)}
    yield Case(
        f"deform_roi_pool backward, {name}",
        backward(scene.pool, leaves),
        {
            "gather twin": backward(scene.twin, leaves),
            "ours, deterministic": deterministic(backward(scene.pool, leaves)),
            **grid,
        },
        2 * maps + pooled,
    )
    yield Case(
        f"RoIAlign backward, {name}",
        backward(scene.align, scene.features),
        grid,
        maps + pooled,
    )


def deterministic(run: Run) -> Run:
    """Returns `run` with algorithms that add in one order."""

    def wrapped() -> object:
        torch.use_deterministic_algorithms(True)
        try:
            return run()
        finally:
            torch.use_deterministic_algorithms(False)

    return wrapped


def adaptive_pooling(name: str, dtype: torch.dtype, compiled: bool) -> Iterator[Case]:
    x, logits = (
        torch.randn(ROIS, CHANNELS, BINS, BINS, device="cuda", dtype=dtype)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for _ in range(2)
    )
    affine = [torch.randn(CHANNELS, device="cuda").requires_grad_() for _ in range(2)]
    leaves = [x, logits, *affine]
    ours = partial(adaptive_pool, *leaves)
    sides: dict[str, Callable[[], Tensor]] = {"eager": partial(eager_adaptive_pool, *leaves)}
    if dtype != torch.float32:  # the library's instance norm wants one dtype
        sides["eager"] = partial(eager_adaptive_pool, x, logits, *(t.to(dtype) for t in affine))
    if compiled:
        torch._functorch.config.donated_buffer = False  # the graph is run backward repeatedly
        eager = sides["eager"]
        sides["torch.compile"] = torch.compile(lambda: eager())
    pooled = x.nbytes // 4
    yield Case(
        f"adaptive_pool forward, {name}",
        no_grad(ours),
        {k: no_grad(run) for k, run in sides.items()},
        2 * x.nbytes + pooled,
    )
    yield Case(
        f"adaptive_pool backward, {name}",
        backward(ours, leaves),
        {k: backward(run, [x, logits]) for k, run in sides.items()},
        4 * x.nbytes + pooled,
    )


def selection() -> Iterator[Case]:
    for made, count in (
        (post_processing_ops.aerial, 1_000),
        (post_processing_ops.aerial, 10_000),
        (post_processing_ops.aerial, 100_000),
        (post_processing_ops.dense, 10_000),
        (post_processing_ops.dense, 100_000),
    ):
        boxes, scores = made(count)
        here = boxes.cuda(), scores.cuda(), IOU
        assert torch.equal(nms(*here).cpu(), nms(boxes, scores, IOU))
        yield Case(
            f"nms {count} {made.__name__}",
            partial(nms, *here),
            {
                "torchvision nms": partial(torchvision.ops.nms, *here),
                "ours on the CPU, both ways": partial(by_cpu, nms, *here),
            },
        )
    boxes, scores = (t.cuda() for t in post_processing_ops.class_scores(125))
    for method in ("linear", "gaussian"):
        call = {"method": method}
        yield Case(
            f"soft_nms 125 x 80 {method}",
            partial(soft_nms, boxes, scores, **call),
            {
                "twin, all classes at once": partial(soft_nms_reference, boxes, scores, **call),
                "loop over classes and picks": partial(
                    post_processing_ops.soft_nms_loop, boxes, scores, method
                ),
                "ours on the CPU, both ways": partial(by_cpu, soft_nms, boxes, scores, **call),
            },
        )


def encoding() -> Iterator[Case]:
    for height, width in ((800, 1333), (4000, 4000)):
        masks, boxes = post_processing_ops.instances(100, height, width)
        size = {"height": height, "width": width}
        here = masks.cuda(), boxes.cuda()
        assert masks_to_rle(*here, **size) == masks_to_rle(masks, boxes, **size)
        yield Case(
            f"masks_to_rle 100 on {height} x {width}",
            partial(masks_to_rle, *here, **size),
            {
                "torchvision paste, pycocotools": partial(
                    torchvision_paste_and_encode, *here, **size
                ),
                "ours on the CPU, both ways": partial(by_cpu, masks_to_rle, *here, **size),
            },
        )


def first_stage() -> Iterator[Case]:
    """What a training step does for sixteen pictures of 800 x 1344: proposals, and targets."""
    anchors = post_processing_ops.anchors_of(800, 1344).cuda()
    g = torch.Generator("cuda").manual_seed(0)
    middle = torch.rand(PICTURES * 10_000, 2, generator=g, device="cuda") * 800
    side = torch.rand(PICTURES * 10_000, 2, generator=g, device="cuda") * 100 + 8
    boxes = torch.cat((middle, middle + side), 1)
    scores = torch.rand(len(boxes), generator=g, device="cuda")
    groups = torch.arange(PICTURES * 5, device="cuda").repeat_interleave(2_000)
    yield Case(
        f"nms {PICTURES} pictures x 5 levels x 2000",
        partial(nms, boxes, scores, 0.7, groups=groups),
        {
            "torchvision batched_nms": partial(
                torchvision.ops.batched_nms, boxes, scores, groups, 0.7
            )
        },
    )
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    for count in (10, 100):
        gts = boxes.view(PICTURES, -1, 4)[:, :count].contiguous()
        call = partial(assign_targets, floor_iou=0.3, tie_iou=0.3)
        twin = partial(assign_targets_reference, floor_iou=0.3, tie_iou=0.3)
        every = anchors.expand(PICTURES, -1, -1)
        assert all(map(torch.equal, call(every, gts), twin(every, gts)))
        yield Case(
            f"assign_targets {PICTURES} pictures x {len(anchors)} anchors x {count} objects",
            partial(call, every, gts),
            {
                "twin": partial(twin, every, gts),
                "torchvision box_iou, Matcher": partial(one_by_one, matcher, anchors, gts),
            },
        )


def one_by_one(matcher: Matcher, anchors: Tensor, gts: Tensor) -> list[Tensor]:
    """Assigns anchors to the objects of each picture, as torchvision's first stage does."""
    return [matcher(box_iou(objects, anchors)) for objects in gts]


def torchvision_paste_and_encode(masks: Tensor, boxes: Tensor, height: int, width: int) -> object:
    """What torchvision's Mask R-CNN does on the card, and then what COCO evaluation needs."""
    pasted = post_processing_ops.paste_masks_in_image(masks[:, None], boxes, (height, width))
    canvases = (pasted[:, 0] > 0.5).permute(2, 1, 0).contiguous().to(torch.uint8).cpu().numpy()
    return post_processing_ops.coco_mask.encode(canvases.transpose(1, 0, 2).copy(order="F"))


def by_cpu(op: Callable[..., Any], *arguments: Any, **options: Any) -> object:
    """Runs an op on the CPU for tensors of the card, and brings a tensor back."""
    moved = [a.cpu() if isinstance(a, Tensor) else a for a in arguments]
    found = op(*moved, **options)
    return found.cuda() if isinstance(found, Tensor) else found


def median_ms(run: Run) -> float:
    """Median milliseconds between CUDA events around `run`, warm."""
    run()
    torch.cuda.synchronize()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - started < SECONDS and len(times) < 200):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        run()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last))
    return statistics.median(times)


def measured(case: Case, rate: float) -> dict[str, Any]:
    """Times both sides twice in turn; the better of each counts."""
    sides = {"ours": case.ours, **case.others}
    found: dict[str, float] = {}
    for _ in range(2):
        for name, run in sides.items():
            before = found.get(name, math.inf)
            if not SLOW_MS < before < math.inf:
                found[name] = min(before, median_ms(run))
    floor = case.moved / rate * 1e3
    ours = found.pop("ours")
    ratios = ", ".join(f"{ms / ours:.2f} x {name}" for name, ms in found.items())
    over = f", {ours / floor:.2f} x floor" if floor else ""
    print(f"{case.name}: {ours:.3f} ms{over}; {ratios}", flush=True)
    return {"name": case.name, "ours_ms": ours, "floor_ms": floor, "others_ms": found}


def show(report: dict[str, Any]) -> None:
    table = Table("case", "ours ms", "x floor", "against", "ms", "ratio", title=report["card"])
    for row in report["ops"]:
        over = f"{row['ours_ms'] / row['floor_ms']:.2f}" if row["floor_ms"] else ""
        first: Sequence[str] = (row["name"], f"{row['ours_ms']:.3f}", over)
        for name, ms in row["others_ms"].items() or {"": math.nan}.items():
            table.add_row(*first, name, f"{ms:.3f}", f"{ms / row['ours_ms']:.2f}x")
            first = ("", "", "")
    console.print(table)


if __name__ == "__main__":
    main()
