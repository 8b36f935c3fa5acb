"""The demonstration's command lines are understood by the verbs, and answers compared rightly."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2det.data.synthetic import write_dataset
from d2det_platform.cli import VERBS, imported
from d2det_platform.demo import run, steps
from d2det_platform.demo.data import DemoData, of_folder
from d2det_platform.demo.endpoint import largest_difference
from d2det_platform.demo.run import DemoOptions, demonstrate, training_flags
from d2det_platform.usage import parse


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    folder = tmp_path_factory.mktemp("scenes")
    for split in ("train", "val"):
        write_dataset(folder, split=split, num_images=6, size=(96, 128))
    return of_folder(folder, folder / "out")


def test_training_takes_about_as_many_pictures_whatever_the_data(data: DemoData) -> None:
    flags = training_flags(data, DemoOptions())
    assert flags["train.epochs"] == run.MAX_EPOCHS  # six pictures are few
    assert training_flags(data, DemoOptions(epochs=2))["train.epochs"] == 2
    assert flags["preset"] == "d2det_tiny_instance"


def test_the_digest_changes_with_the_options(data: DemoData) -> None:
    flags = [training_flags(data, DemoOptions(epochs=epochs)) for epochs in (1, 1, 2)]
    first, again, other = map(run._digest, flags)
    assert first == again != other


def test_the_training_command_is_understood(data: DemoData, tmp_path: Path) -> None:
    flags = training_flags(data, DemoOptions())
    words = [text for name, value in flags.items() for text in (f"--{name}", str(value)) if text]
    options = imported(VERBS["train"].parse)(
        ["--name", "train", "--storage", str(tmp_path), *words]
    )
    assert options.run_url == f"{tmp_path}/train"
    assert options.model.mask is not None


def test_the_other_commands_are_understood(
    data: DemoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is passed to the verbs, without running them."""
    lines: list[list[str]] = []
    monkeypatch.setattr(run, "run", lambda story, *args: lines.append([str(a) for a in args]))
    monkeypatch.setattr(run, "_labels", lambda places: [])
    places = run._Places(tmp_path)
    places.run.mkdir()
    (places.run / "config.json").write_text('{"model": {"mask": {}}}')
    story = steps.Story(2)
    run._score(story, places, data)
    run._label(story, places, data)
    for verb, *words in lines:
        parse(imported(VERBS[verb].options), words, prog=verb)
    assert [line[0] for line in lines] == ["evaluate", "label"]


def test_differences_are_told() -> None:
    ours = [{"label": "car", "bbox": [0, 0, 10, 10]}, {"label": "ship", "bbox": [5, 5, 9, 9]}]
    theirs = [{"label": "car", "bbox": [0, 0, 10, 10]}, {"label": "ship", "bbox": [5, 5, 9, 9.25]}]
    assert largest_difference(ours, ours) == 0
    assert largest_difference(ours, theirs) == pytest.approx(0.25)
    assert largest_difference(ours, theirs[:1]) is None
    assert largest_difference([], []) == 0


def test_a_step_that_fails_ends_the_demonstration_with_a_line(
    data: DemoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(steps, "verb", lambda *args: ["false"])
    options = DemoOptions(data=data.train.images.parent, out=tmp_path)
    assert demonstrate(options) == 1
    assert "exit code 1; run it again to go on from there" in capsys.readouterr().err


def test_steps_never_land_on_a_cluster_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert "RAY_ADDRESS" not in steps.environment()


def test_scores_from_last_time_are_told_without_scoring_again(
    data: DemoData, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "scores.json").write_text(
        '{"metrics": {"bbox/AP": 0.25, "bbox/AP50": 0.5, "bbox/APs": 0.1}}'
    )
    run._score(steps.Story(1), run._Places(tmp_path), data)
    assert "bbox/AP 0.250, bbox/AP50 0.500" in capsys.readouterr().out
