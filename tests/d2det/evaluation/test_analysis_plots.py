"""Figures of an analysis are drawn whatever the result is."""

from __future__ import annotations

import pytest

from d2det.evaluation import analysis_plots as plots
from d2det.evaluation.coco import evaluate_coco
from d2det.evaluation.confusion import confusion_matrix
from d2det.evaluation.error_curves import error_curves
from d2det.evaluation.error_types import error_types
from d2det.evaluation.plot_style import png_bytes, shorten
from d2det.evaluation.results import read_detections, read_ground_truth
from d2det.evaluation.score_analysis import analyze_scores
from tests.d2det.evaluation.made import found, made_annotations, made_results, one_class, truth_row

MADE = made_annotations(0)
NAMED = one_class([truth_row(0, 1, [0, 0, 50, 50])])
NAMED["categories"][0]["name"] = "$_{^ <b>" + "long " * 30


@pytest.mark.parametrize(
    ("annotations", "results"),
    [
        (MADE, made_results(MADE, 0)),
        (MADE, []),
        (one_class([]), [found(0, [0, 0, 5, 5], 0.5)]),
        (NAMED, [found(0, [0, 0, 50, 50], 0.5)]),
    ],
    ids=["usual", "nothing found", "no object", "odd name"],
)
def test_every_figure_is_drawn(annotations, results) -> None:
    truth = read_ground_truth(annotations)
    table = read_detections(results, truth)
    scores = evaluate_coco(truth, table).scores[0]
    curves = error_curves(truth, table)
    figures = [
        plots.error_curves_figure(curves),
        plots.error_curves_figure(curves, label=0),
        plots.error_breakdown_figure(curves),
        plots.precision_recall_figure(scores),
        plots.class_ap_figure(scores),
        plots.error_types_figure(error_types(truth, table)),
        plots.confusion_figure(confusion_matrix(truth, table, min_score=0.3)),
        plots.scores_figure(analyze_scores(truth, table)),
    ]
    for figure in figures:
        assert png_bytes(figure).startswith(b"\x89PNG")


def test_error_curves_have_a_panel_for_each_size_with_ap_of_each_stage() -> None:
    truth = read_ground_truth(MADE)
    curves = error_curves(truth, read_detections(made_results(MADE, 0), truth))
    axes = plots.error_curves_figure(curves).axes
    assert [panel.get_title(loc="left") for panel in axes] == ["all", "small", "medium", "large"]
    legend = [text.get_text() for text in axes[0].get_legend().texts]
    assert legend[0] == f"C75  {100 * curves.mean()[0].mean():.1f}"
    assert legend[-1] == "FN  100.0"


def test_long_names_are_cut_with_an_ellipsis() -> None:
    assert shorten("short") == "short"
    assert shorten("x" * 40) == "x" * 21 + "…"
