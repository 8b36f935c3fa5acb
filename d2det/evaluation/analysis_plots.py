"""Figures of an error analysis; each function returns one, ready for a file or the report."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from d2det.evaluation.coco import IOU_THRESHOLDS, CocoScores
from d2det.evaluation.confusion import ConfusionMatrix
from d2det.evaluation.error_analysis import ErrorAnalysis
from d2det.evaluation.error_curves import STAGES, ErrorCurves
from d2det.evaluation.error_types import ERROR_TYPES, ErrorTypes
from d2det.evaluation.matching import AREA_NAMES
from d2det.evaluation.plot_style import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    RED,
    new_figure,
    shorten,
    style,
)
from d2det.evaluation.precision import NO_OBJECTS, RECALL_LEVELS
from d2det.evaluation.score_analysis import THRESHOLDS, ScoreAnalysis

STAGE_COLOURS = ("#e6e9ee", "#9cbfe8", "#3b6fb6", "#c8504b", "#4c9f70", "#8466b0", "#f0a35e")
"""Grey for what is reached at IoU 0.75, then one colour for what each error costs."""
_READABLE_CELLS = 45
"""Classes up to which numbers fit into the cells of a confusion matrix."""


def analysis_figures(analysis: ErrorAnalysis) -> dict[str, Figure]:
    """Returns all figures of an analysis by the names of their files, single classes left out."""
    return {
        "curves": error_curves_figure(analysis.curves),
        "breakdown": error_breakdown_figure(analysis.curves),
        "precision_recall": precision_recall_figure(analysis.scores),
        "class_ap": class_ap_figure(analysis.scores),
        "error_types": error_types_figure(analysis.types),
        "confusion": confusion_figure(analysis.confusion),
        "scores": scores_figure(analysis.thresholds),
    }


def error_curves_figure(curves: ErrorCurves, label: int | None = None) -> Figure:
    """Returns the paper's Fig. 5: one panel for each object size.

    Args:
        curves: of all classes.
        label: the class to show; None for the mean over classes.
    """
    title = "all classes" if label is None else curves.categories[label].name
    with style():
        figure = new_figure(13, 3.9)
        panels = figure.subplots(1, len(AREA_NAMES), sharey=True)
        for axes, area in zip(panels, AREA_NAMES, strict=True):
            shown = curves.mean(area) if label is None else curves.of_class(label, area)
            axes.set_title(area)
            axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="recall", aspect="equal")
            if shown is None:
                axes.text(0.5, 0.5, "no objects", ha="center", color=GREY)
            else:
                _stacked_areas(axes, shown)
        panels[0].set_ylabel("precision")
        kind = "boxes" if curves.kind == "bbox" else "masks"
        figure.suptitle(f"{shorten(title, 60)} · {kind}", x=0.01, ha="left", fontweight="bold")
    return figure


def error_breakdown_figure(curves: ErrorCurves) -> Figure:
    """Returns, class by class, how far AP comes at IoU 0.75 and what each error costs."""
    areas = curves.precision[..., 0].mean(1)
    present = np.flatnonzero((curves.precision[0, :, :, 0] != NO_OBJECTS).all(0))
    order = present[np.argsort(-areas[0, present], kind="stable")]
    with style():
        figure = new_figure(9, 1.3 + 0.22 * max(len(order), 3))
        axes = figure.subplots()
        left = np.zeros(len(order))
        for reached, name, colour in zip(areas, STAGES, STAGE_COLOURS, strict=True):
            width = np.maximum(reached[order] - left, 0)
            axes.barh(
                np.arange(len(order)),
                width,
                left=left,
                color=colour,
                height=0.8,
                label=name,
            )
            left = left + width
        _class_axis(axes, [curves.categories[k].name for k in order])
        axes.set(xlim=(0, 1), xlabel="area under the precision-recall curve")
        axes.legend(
            ncols=len(STAGES), loc="lower left", bbox_to_anchor=(0, 1), handlelength=1, fontsize=9
        )
    return figure


def precision_recall_figure(scores: CocoScores) -> Figure:
    """Returns the mean precision-recall curve over classes at several overlap thresholds."""
    precision = scores.curves.precision[..., 0]
    present = (precision[0] != NO_OBJECTS).all(0)
    with style():
        figure = new_figure(6.4, 4.6)
        axes = figure.subplots()
        colours = matplotlib.colormaps["viridis"](np.linspace(0.9, 0, 6))
        for colour, index in zip(colours, (0, 2, 4, 5, 6, 8), strict=True):
            curve = precision[index][:, present].mean(1) if present.any() else np.zeros(101)
            threshold = IOU_THRESHOLDS[index]
            axes.plot(
                RECALL_LEVELS,
                curve,
                color=colour,
                label=f"IoU {threshold:.2f}   AP {100 * curve.mean():.1f}",
            )
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        axes.set_title(f"Precision and recall, mean of {int(present.sum())} classes")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def class_ap_figure(scores: CocoScores) -> Figure:
    """Returns AP, AP50 and AP75 of every class that has objects, best first."""
    rows = sorted((r for r in scores.per_class if r.num_objects), key=lambda row: -row.ap)
    with style():
        figure = new_figure(8, 1.4 + 0.24 * max(len(rows), 3))
        axes = figure.subplots()
        places = np.arange(len(rows))
        axes.barh(places, [row.ap50 for row in rows], color="#c9d9ee", height=0.8, label="AP50")
        axes.barh(places, [row.ap for row in rows], color=BLUE, height=0.8, label="AP (number)")
        axes.plot([row.ap75 for row in rows], places, "|", color=ORANGE, ms=9, mew=2, label="AP75")
        for place, row in enumerate(rows):
            axes.text(
                max(row.ap50, row.ap75) + 0.01,
                place,
                f"{100 * row.ap:.1f}",
                va="center",
                fontsize=8,
            )
        _class_axis(axes, [f"{shorten(r.category.name)} ({r.num_objects})" for r in rows])
        axes.set(xlim=(0, 1.08), xlabel="average precision")
        axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), handlelength=1)
    return figure


def error_types_figure(types: ErrorTypes) -> Figure:
    """Returns what each kind of mistake costs in AP50, and how often it happens."""
    colours = (RED, BLUE, "#8466b0", ORANGE, GREEN, GREY)
    with style():
        figure = new_figure(9, 3.1)
        left, right = figure.subplots(1, 2, sharey=True)
        places = np.arange(len(ERROR_TYPES))
        for axes, values, form, title in (
            (left, 100 * types.gains, "{:.1f}", "AP50 points lost"),
            (right, types.counts.sum(1), "{:,.0f}", "mistakes"),
        ):
            axes.barh(places, values, color=colours, height=0.7)
            top = max(float(np.max(values)), 1e-9)
            for place, value in enumerate(values):
                axes.text(max(value, 0) + 0.02 * top, place, form.format(value), va="center")
            axes.set(xlim=(0, 1.18 * top), title=title)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=axes is right))
            axes.grid(axis="y", visible=False)
        left.set_yticks(places, ERROR_TYPES)
        left.invert_yaxis()
    return figure


def confusion_figure(confusion: ConfusionMatrix) -> Figure:
    """Returns the confusion matrix, each row (a true class) as fractions of its objects.

    The row "background" has no objects: it is divided by all false detections in the open.
    """
    names = [shorten(category.name) for category in confusion.categories]
    count = len(names) + 1
    total = confusion.matrix.sum(1, keepdims=True)
    share = confusion.matrix / np.maximum(total, 1)
    with style():
        side = min(3 + 0.4 * count, 17)
        figure = new_figure(side + 1, side)
        axes = figure.subplots()
        picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        size = min(10.0, 0.6 * 72 * (side - 2) / count)  # points, from the height of a cell
        axes.set_xticks(np.arange(count), [*names, "missed"], rotation=90, fontsize=size)
        axes.set_yticks(np.arange(count), [*names, "background"], fontsize=size)
        axes.set(xlabel="detected as", ylabel="true class")
        axes.set_title(
            f"Confusions at IoU {confusion.iou:.2f}, score {confusion.min_score:.2f} and above"
        )
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        for edge in (-0.5, count - 1.5):
            axes.axhline(edge, color=GREY, lw=0.8)
            axes.axvline(edge, color=GREY, lw=0.8)
        if count <= _READABLE_CELLS:
            _cell_numbers(axes, confusion.matrix, share, size)
        figure.colorbar(picture, ax=axes, shrink=0.4, label="share of the row")
    return figure


def scores_figure(analysis: ScoreAnalysis) -> Figure:
    """Returns precision, recall and F1 over the score threshold, and the calibration."""
    with style():
        figure = new_figure(11, 4.1)
        left, right = figure.subplots(1, 2)
        for curve, name, colour in zip(
            analysis.curves, ("precision", "recall", "F1"), (BLUE, ORANGE, GREEN), strict=True
        ):
            left.plot(THRESHOLDS, curve, color=colour, label=name)
        if analysis.best is not None:
            best = analysis.best
            left.axvline(best.threshold, color=INK, lw=1, ls=":")
            left.plot(best.threshold, best.f1, "o", color=GREEN)
            at_right = best.threshold < 0.6
            left.annotate(
                f"best F1 {best.f1:.2f} at {best.threshold:.2f}",
                (best.threshold, best.f1),
                xytext=(8 if at_right else -8, 8),
                textcoords="offset points",
                ha="left" if at_right else "right",
            )
        left.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score threshold")
        left.set_title(f"Choice of the threshold (IoU {analysis.iou:.2f}, all classes)")
        left.legend(loc="lower center", ncols=3)
        _calibration(right, analysis)
    return figure


def _stacked_areas(axes: Axes, curves: NDArray[np.float64]) -> None:
    """Areas between the curves of successive stages, AP of each in the legend."""
    below = np.zeros(curves.shape[1])
    for curve, name, colour in zip(curves, STAGES, STAGE_COLOURS, strict=True):
        axes.fill_between(
            RECALL_LEVELS,
            below,
            curve,
            color=colour,
            lw=0,
            label=f"{name}  {100 * curve.mean():.1f}",
        )
        if name != STAGES[-1]:
            axes.plot(RECALL_LEVELS, curve, color=INK, lw=0.7, clip_on=False)
        below = curve
    axes.legend(
        loc="lower left",
        fontsize=8,
        handlelength=1,
        labelspacing=0.25,
        frameon=True,
        framealpha=0.85,
        edgecolor=FAINT,
    )


def _class_axis(axes: Axes, names: list[str]) -> None:
    """Class names down the y axis, first on top, no margin at the ends."""
    axes.set_yticks(np.arange(len(names)), [shorten(name, 34) for name in names], fontsize=9)
    axes.set_ylim(max(len(names), 1) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _cell_numbers(
    axes: Axes, counts: NDArray[np.int64], share: NDArray[np.float64], size: float
) -> None:
    for row, column in np.argwhere(counts > 0):
        axes.text(
            column,
            row,
            f"{counts[row, column]}",
            ha="center",
            va="center",
            fontsize=size * 0.8,
            color="white" if share[row, column] > 0.55 else INK,
        )


def _calibration(axes: Axes, analysis: ScoreAnalysis) -> None:
    """Frequency of being right over score, the number of detections behind it in grey."""
    calibration = analysis.calibration
    edges = np.linspace(0, 1, len(calibration.counts) + 1)
    share = calibration.counts / max(calibration.counts.max(), 1)
    axes.bar(edges[:-1], 0.3 * share, np.diff(edges), align="edge", color=FAINT, label="detections")
    axes.plot([0, 1], [0, 1], color=GREY, ls="--", lw=1)
    axes.plot(calibration.mean_score, calibration.precision, "o-", color=BLUE, label="observed")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score", ylabel="share that is right")
    axes.set_title(f"Calibration (error {100 * calibration.error:.1f} points)")
    axes.legend(loc="upper left")
