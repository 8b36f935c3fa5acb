"""Plots of a training run: its curves, AP by class, and predictions beside the ground truth."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator
from numpy.typing import NDArray

from d2det.data.samples import Sample
from d2det.evaluation.analysis_plots import class_ap_figure
from d2det.evaluation.coco import CocoScores
from d2det.evaluation.plot_style import GREY, INK, RED, new_figure, save_png, style
from d2det.structures import Detections, Rle
from d2det.visualize import Picture, draw_detections, draw_objects, grid

MAX_SIDE = 640
"""Pixels of a cell of the page of predictions; larger pictures are drawn, then scaled down."""

Row = Mapping[str, Any]


def training_curves(metrics_jsonl: Path, out_png: Path) -> Path:
    """Draws the curves of a run's `metrics.jsonl` and returns the file written.

    Raises:
        ValueError: the log holds no step, or a line that is not JSON.
    """
    lines = metrics_jsonl.read_text().splitlines()
    try:
        rows = [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        raise ValueError(f"{metrics_jsonl} holds a line that is not JSON: {error}") from error
    return save_png(training_figure(rows), out_png)


def training_figure(rows: Sequence[Row]) -> Figure:
    """Returns loss, its parts, validation AP, learning rate, gradient norm and speed of a run.

    Args:
        rows: of the log. Steps have "step", "epoch", "loss", "loss/NAME", "lr", "grad_norm" and
            "seconds"; evaluations have "step" and "metrics" with names such as "bbox/AP"; other
            rows with an "event" are marked where they happened.

    Raises:
        ValueError: there is no step among them.
    """
    steps = [row for row in rows if "loss" in row]
    if not steps:
        raise ValueError("the log holds no training step yet: nothing to plot")
    axis_of, axis_name = _time_axis(steps)
    x = axis_of([row["step"] for row in steps])
    with style():
        figure = new_figure(14, 7.2)
        panels = figure.subplots(2, 3).ravel()
        _line(panels[0], x, [row["loss"] for row in steps], color=INK)
        panels[0].set_title("loss")
        for name in [key for key in steps[-1] if key.startswith("loss/")]:
            values = [row.get(name, np.nan) for row in steps]
            panels[1].plot(x, _smooth(values), label=name.removeprefix("loss/"))
        panels[1].set_title("parts of the loss (smoothed)")
        _legend(panels[1], columns=2)
        _validation(panels[2], [row for row in rows if "metrics" in row], axis_of)
        panels[3].plot(x, [row.get("lr", np.nan) for row in steps])
        panels[3].set_title("learning rate")
        _line(panels[4], x, [row.get("grad_norm", np.nan) for row in steps], color=GREY)
        panels[4].set(title="gradient norm", yscale="log")
        panels[4].yaxis.set_major_formatter(LogFormatter())
        panels[4].yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
        seconds = [row.get("seconds", np.nan) for row in steps]
        _line(panels[5], x, seconds, color=GREY)
        # A step that waited for a checkpoint or an evaluation should not flatten the others.
        panels[5].set(title="seconds per step", ylim=(0, 1.5 * np.nanpercentile(seconds, 98)))
        for panel in panels:
            panel.set(xlabel=axis_name, xlim=(0, max(x[-1], 1e-9)))
            panel.xaxis.set_major_locator(MaxNLocator(6, integer=x[-1] > 6))
            for row in rows:
                if "event" in row and "metrics" not in row:
                    panel.axvline(axis_of([row["step"]])[0], color=RED, lw=0.8, alpha=0.5)
    return figure


def class_bars(scores: CocoScores, out_png: Path) -> Path:
    """Draws AP, AP50 and AP75 of every class and returns the file written."""
    return save_png(class_ap_figure(scores), out_png)


def prediction_page(
    samples: Sequence[tuple[Sample, Detections]],
    class_names: Sequence[str],
    out_png: Path,
    *,
    min_score: float = 0.3,
    columns: int = 2,
) -> Path:
    """Draws ground truth and predictions side by side, and returns the file written.

    Args:
        samples: pictures with their ground truth, and what was found in them.
        class_names: label by label.
        out_png: the file to write.
        min_score: detections below it are left out.
        columns: pairs of pictures in a row.
    """
    cells: list[Picture] = []
    for sample, detections in samples:
        cells.append(_truth(sample, class_names))
        cells.append(draw_detections(sample.image, detections, class_names, min_score=min_score))
    width = 2 * columns
    rows = [cells[start : start + width] for start in range(0, len(cells), width)]
    page = grid(
        rows,
        titles=["ground truth", f"found (score {min_score:.2f} and above)"] * columns,
        cell=_cell_size([sample.image for sample, _ in samples]),
    )
    out_png.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(".png", page[:, :, ::-1])
    assert ok
    out_png.write_bytes(data.tobytes())
    return out_png


def _truth(sample: Sample, class_names: Sequence[str]) -> Picture:
    height, width = sample.image.shape[:2]
    masks = None
    if sample.masks is not None and all(sample.masks):
        masks = [Rle(size=(height, width), counts=counts) for counts in sample.masks]
    return draw_objects(
        sample.image, sample.boxes, sample.labels.tolist(), class_names, masks=masks
    )


def _cell_size(images: Sequence[Picture]) -> tuple[int, int]:
    """(height, width) with the shape of the middle picture."""
    if not images:
        return MAX_SIDE, MAX_SIDE
    aspect = float(np.median([image.shape[1] / image.shape[0] for image in images]))
    aspect = min(max(aspect, 0.5), 2.0)
    return (
        (round(MAX_SIDE / aspect), MAX_SIDE)
        if aspect >= 1
        else (MAX_SIDE, round(MAX_SIDE * aspect))
    )


def _time_axis(
    steps: Sequence[Row],
) -> tuple[Callable[[Sequence[int]], NDArray[np.float64]], str]:
    """Epochs where a whole one is known, else steps: function from step to place, and its name."""
    first = [row["step"] for row in steps if row.get("epoch") == steps[0].get("epoch")]
    whole = steps[-1].get("epoch") != steps[0].get("epoch")
    scale = max(first) if whole and steps[0].get("epoch") == 0 else 1
    return lambda at: np.asarray(at, np.float64) / scale, "epoch" if scale > 1 else "step"


def _validation(
    axes: Axes, rows: Sequence[Row], axis_of: Callable[[Sequence[int]], NDArray[np.float64]]
) -> None:
    axes.set_title("validation")
    axes.set_ylim(0, 1)
    x = axis_of([row["step"] for row in rows])
    names = ("bbox/AP", "bbox/AP50", "bbox/AP75", "segm/AP", "segm/AP50", "segm/AP75")
    for name in names:
        values = [row["metrics"].get(name, np.nan) for row in rows]
        if not np.isfinite(values).any():
            continue
        (line,) = axes.plot(x, values, "o-", ms=3.5, label=f"{name} {values[-1]:.3f}")
        best = int(np.nanargmax(values))
        axes.plot(x[best], values[best], "o", ms=8, mfc="none", color=line.get_color())
    if rows:
        _legend(axes, columns=1)
    else:
        axes.text(0.5, 0.5, "no evaluation yet", transform=axes.transAxes, ha="center", color=GREY)


def _line(axes: Axes, x: NDArray[np.float64], values: Sequence[float], *, color: str) -> None:
    """Every value faintly, their running mean in `color`."""
    axes.plot(x, values, color=color, alpha=0.25, lw=0.7)
    axes.plot(x, _smooth(values), color=color)


def _smooth(values: Sequence[float]) -> NDArray[np.float64]:
    """The mean over a window of a fiftieth of all values around each, shorter at the ends."""
    array = np.asarray(values, np.float64)
    reach = max(1, len(array) // 100)
    known = np.isfinite(array)
    sums, counts = (
        np.concatenate(([0.0], np.cumsum(column))) for column in (np.where(known, array, 0), known)
    )
    low = np.maximum(np.arange(len(array)) - reach, 0)
    high = np.minimum(np.arange(len(array)) + reach + 1, len(array))
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = (sums[high] - sums[low]) / (counts[high] - counts[low])
    return mean


def _legend(axes: Axes, *, columns: int) -> None:
    axes.legend(
        fontsize=8.5, ncols=columns, loc="best", frameon=True, framealpha=0.75, edgecolor="none"
    )
