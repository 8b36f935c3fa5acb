"""Plots of a training run."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from d2det.data.samples import Sample
from d2det.evaluation.coco import evaluate_coco
from d2det.evaluation.plots import (
    class_bars,
    prediction_page,
    training_curves,
    training_figure,
)
from d2det.evaluation.results import read_detections, read_ground_truth
from d2det.structures import Detections
from tests.d2det.evaluation.made import made_annotations, made_results

STEPS_PER_EPOCH = 10


def _log(epochs: int) -> list[dict]:
    rows = []
    for step in range(1, epochs * STEPS_PER_EPOCH + 1):
        losses = {"loss/cls": 2 / step, "loss/rpn_box": 1 / step}
        rows.append(
            {
                "step": step,
                "epoch": (step - 1) // STEPS_PER_EPOCH,
                "loss": 3 / step,
                **losses,
                "lr": 0.01,
                "grad_norm": 5.0,
                "seconds": 0.5,
            }
        )
        if step % STEPS_PER_EPOCH == 0:
            metrics = {"bbox/AP": step / 100, "images_per_s": 3.0}
            rows.append({"step": step, "event": "evaluation", "metrics": metrics})
    return rows


def _is_picture(path) -> bool:
    image = cv2.imread(str(path))
    return image is not None and image.std() > 0


def test_curves_show_every_part_of_the_loss_and_ap_over_epochs(tmp_path) -> None:
    rows = _log(3)
    panels = {axes.get_title(loc="left"): axes for axes in training_figure(rows).axes}
    parts = [text.get_text() for text in panels["parts of the loss (smoothed)"].get_legend().texts]
    assert parts == ["cls", "rpn_box"]
    ap = panels["validation"].lines[0]
    np.testing.assert_allclose(ap.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(ap.get_ydata(), [0.1, 0.2, 0.3])
    assert panels["loss"].get_xlabel() == "epoch"
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert _is_picture(training_curves(log, tmp_path / "plots" / "curves.png"))


@pytest.mark.parametrize("rows", [_log(3)[:1], _log(3)[:4], _log(1)], ids=["one", "few", "epoch"])
def test_a_run_that_has_just_begun_is_drawn_over_steps(rows) -> None:
    panels = {axes.get_title(loc="left"): axes for axes in training_figure(rows).axes}
    assert panels["loss"].get_xlabel() == "step"


def test_smoothing_leaves_out_what_is_not_finite() -> None:
    rows = _log(2)
    rows[3]["loss"] = float("nan")
    panels = {axes.get_title(loc="left"): axes for axes in training_figure(rows).axes}
    smooth = panels["loss"].lines[1].get_ydata()
    assert np.isfinite(smooth).all()
    assert smooth[3] == pytest.approx((rows[2]["loss"] + rows[4]["loss"]) / 2)


def test_a_log_without_steps_or_with_a_cut_line_is_refused(tmp_path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text("")
    with pytest.raises(ValueError, match="no training step"):
        training_curves(log, tmp_path / "out.png")
    log.write_text('{"step": 1, "lo')
    with pytest.raises(ValueError, match="not JSON"):
        training_curves(log, tmp_path / "out.png")


def test_class_bars_and_page_of_predictions_are_pictures(tmp_path) -> None:
    annotations = made_annotations(0)
    truth = read_ground_truth(annotations)
    scores = evaluate_coco(truth, read_detections(made_results(annotations, 0), truth)).scores[0]
    assert _is_picture(class_bars(scores, tmp_path / "bars.png"))
    sample = Sample(
        image=np.zeros((50, 80, 3), np.uint8),
        image_id=1,
        boxes=np.array([[10, 10, 40, 40]], np.float32),
        labels=np.array([1]),
    )
    found = Detections(
        torch.tensor([[11.0, 10, 40, 42]]), torch.tensor([0.8]), torch.tensor([1]), (50, 80)
    )
    page = prediction_page([(sample, found)] * 3, ("a", "b"), tmp_path / "page.png")
    assert _is_picture(page)
    assert prediction_page([], ("a", "b"), tmp_path / "empty.png").exists()
