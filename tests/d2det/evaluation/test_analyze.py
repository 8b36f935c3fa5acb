"""`d2det analyze`: the folder it leaves, and the page in it."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from d2det.evaluation.analyze import AnalyzeCommand, run
from d2det.evaluation.error_analysis import analyze_errors
from d2det.evaluation.error_types import ERROR_TYPES
from d2det.evaluation.examples import worst_errors
from d2det.evaluation.results import read_detections, read_ground_truth
from tests.d2det.evaluation.made import HEIGHT, WIDTH, made_annotations, made_results

EVIL = '<script>alert("x")</script>'


@pytest.fixture
def folder(tmp_path):
    """annotations.json, results.json and photos/, of which one is missing and one broken."""
    annotations = made_annotations(0)
    annotations["categories"][0]["name"] = EVIL
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    (tmp_path / "results.json").write_text(json.dumps(made_results(annotations, 0)))
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for image in annotations["images"][2:]:
        picture = rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / image["file_name"]), picture)
    (tmp_path / "photos" / annotations["images"][1]["file_name"]).write_bytes(b"no picture")
    return tmp_path


class _Page(HTMLParser):
    """Collects what a browser would load or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]


def _command(folder, **changes) -> AnalyzeCommand:
    return AnalyzeCommand(
        annotations=folder / "annotations.json",
        results=folder / "results.json",
        out=folder / "out",
        **changes,
    )


def test_the_folder_holds_page_plots_and_numbers(folder, capsys, caplog) -> None:
    assert run(_command(folder, images=folder / "photos", examples=2)) == 0
    names = {path.name for path in (folder / "out").glob("*")}
    plots = ("curves", "breakdown", "precision_recall", "class_ap", "error_types", "confusion")
    assert names >= {f"{name}.png" for name in (*plots, "scores")}
    assert len(list((folder / "out" / "classes").glob("*.png"))) == 3  # the fourth has no object
    page = _Page((folder / "out" / "report.html").read_text())
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert len(page.addresses) >= 7 + 3 + 6
    assert not {"script", "link", "iframe"} & set(page.tags)
    numbers = json.loads((folder / "out" / "analysis.json").read_text())
    truth = read_ground_truth(folder / "annotations.json")
    expected = analyze_errors(truth, read_detections(folder / "results.json", truth))
    assert numbers["summary"] == expected.scores.summary
    assert numbers["error_curves"]["all"]["FN"] == 1
    assert numbers["best_f1"]["threshold"] == numbers["confusion"]["min_score"]
    assert "report.html" in capsys.readouterr().out
    assert "no example from" in caplog.text


def test_masks_can_be_analysed_without_pictures_and_class_plots(folder) -> None:
    assert run(_command(folder, masks=True, class_plots=False, min_score=0.2)) == 0
    numbers = json.loads((folder / "out" / "analysis.json").read_text())
    assert (numbers["kind"], numbers["confusion"]["min_score"]) == ("segm", 0.2)
    assert not (folder / "out" / "classes").exists()


def test_a_folder_of_pictures_that_is_not_there_is_refused(folder) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        run(_command(folder, images=folder / "nowhere"))


def test_examples_are_the_surest_mistakes_of_each_kind_one_a_picture(folder) -> None:
    truth = read_ground_truth(folder / "annotations.json")
    types = analyze_errors(truth, read_detections(folder / "results.json", truth)).types
    grey = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    examples = worst_errors(types, truth, lambda name: grey, per_type=3)
    for kind in ERROR_TYPES:
        names = [one.file_name for one in examples if one.error == kind]
        assert len(names) == len(set(names)) <= 3
    location = ERROR_TYPES.index("location")
    surest = types.detections.scores[types.error == location].max()
    first = next(one for one in examples if one.error == "location")
    assert f"{surest:.2f}" in first.caption
    assert (first.picture != 128).any()


def test_examples_of_mask_errors_show_the_masks(folder) -> None:
    truth = read_ground_truth(folder / "annotations.json")
    table = read_detections(folder / "results.json", truth)
    grey = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    changed = []
    for kind in ("bbox", "segm"):
        types = analyze_errors(truth, table, kind=kind).types
        examples = worst_errors(types, truth, lambda name: grey, per_type=3)
        changed.append(np.mean([(one.picture != 128).any(2).mean() for one in examples]))
    assert changed[1] > 2 * changed[0]
