"""The one door: a person's mistakes are one line and exit code 2, and verbs start fast."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pydantic import BaseModel

from d2det.checkpoints.weights import save_weights
from d2det.config import InputConfig, Preset
from d2det.inference.results import ResultFile
from d2det.structures import Category
from d2det_platform import cli
from tests.d2det.models.small import CONFIG, small_detector

CATEGORIES = tuple(Category(id=10 * k + 1, name=f"class {k}") for k in range(3))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    preset = Preset(
        name="small", summary="", model=CONFIG, input=InputConfig(short_side=64, long_side=96)
    )
    save_weights(path, small_detector(), preset=preset, categories=CATEGORIES)
    return path


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """Two sound pictures, one of them in a folder of its own, and a damaged one."""
    folder = tmp_path / "see"
    (folder / "tief ü").mkdir(parents=True)
    for i, name in enumerate(("a.png", "tief ü/b.jpg")):
        noise = np.random.default_rng(i).integers(0, 256, (70, 90, 3), dtype=np.uint8)
        (folder / name).write_bytes(cv2.imencode(Path(name).suffix, noise)[1].tobytes())
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:500])
    return folder


def mistakes(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """Returns the one line that a mistaken command line gets, having checked exit code 2."""
    assert cli.main([str(arg) for arg in args]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("d2det")
    return captured.err


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text and entry.summary in text for verb, entry in cli.VERBS.items())
    assert cli.main([]) == 2


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_with_an_example_or_a_sentence(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([verb, "--help"]) == 0
    assert f"usage: d2det {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_option_of_every_verb_is_explained(verb: str) -> None:
    options = cli.imported(cli.VERBS[verb].options)
    assert issubclass(options, BaseModel)
    for name, field in options.model_fields.items():
        is_group = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        assert field.annotation.__doc__ if is_group else field.description, name
    assert callable(cli.imported(cli.VERBS[verb].run))


@pytest.mark.parametrize(
    ("args", "unwanted"),
    [
        pytest.param(["--help"], {"torch", "ray", "tyro"}, id="help"),
        pytest.param(["predict", "--help"], {"torch", "ray"}, id="predict help"),
        pytest.param(["convert", "--help"], {"torch", "ray"}, id="convert help"),
        pytest.param(["doctor", "--help"], {"torch", "ray"}, id="doctor help"),
        pytest.param(["presets"], {"ray"}, id="presets"),
        pytest.param(["predict", "nowhere", "--weights", "w"], {"ray"}, id="predict"),
        pytest.param(["bench", "--preset", "nope"], {"ray"}, id="bench"),
    ],
)
def test_verbs_import_only_what_they_need(args: list[str], unwanted: set[str]) -> None:
    code = (
        "import sys; from d2det_platform.cli import main; main(sys.argv[1:]);"
        "print('IMPORTED', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True
    )
    imported = set(done.stdout.rpartition("IMPORTED")[2].split())
    assert "d2det_platform.cli" in imported
    assert not imported & unwanted


TRAIN = ("train", "--preset", "d2det_lite", "--data.train-images", "x", "--storage", "y")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        pytest.param(["predct"], "did you mean 'predict'", id="verb"),
        pytest.param(["predict"], "missing --weights", id="required"),
        pytest.param(["predict", "--weights", "w"], "at least one file", id="no picture given"),
        pytest.param(
            ["predict", "x", "--weights", "w", "--score-treshold", "1"],
            "unknown option --score-treshold; did you mean --score-threshold?",
            id="option",
        ),
        pytest.param(
            ["predict", "x", "--weights", "w", "--limits.pixels", "1"],
            "did you mean --limits.max-pixels?",
            id="nested option",
        ),
        pytest.param(
            ["predict", "x", "--weights", "w", "--score-threshold", "3"],
            "--score-threshold: input should be less than or equal to 1, got 3.0",
            id="value out of range",
        ),
        pytest.param(
            [*TRAIN, "--train.lr", "-1"],
            "--train.lr: input should be greater than 0, got -1.0",
            id="nested value out of range",
        ),
        pytest.param(
            [*TRAIN, "--model.rpn.anchor-ratios", "1", "-2"],
            "--model.rpn.anchor-ratios: input should be greater than 0, got -2.0",
            id="one of several values out of range",
        ),
        pytest.param(
            [*TRAIN, "--train.lr", "nan"], "--train.lr: input should be a finite number", id="nan"
        ),
        pytest.param(
            [*TRAIN, "--model.rpn.negative-iou", "0.9"],
            "negative_iou 0.9 may not be above positive_iou 0.7",
            id="nested values that exclude each other",
        ),
        pytest.param([*TRAIN, "--train.epochs", "0"], "--train.epochs: input", id="no epoch"),
        pytest.param([*TRAIN, "--train.flip", "50"], "--train.flip: input", id="flip in percent"),
        pytest.param(
            [*TRAIN, "--train.global-batch", "-3"], "--train.global-batch: input", id="no batch"
        ),
        pytest.param(
            [*TRAIN, "--train.short-sides", "900", "400"],
            "the smallest and the largest",
            id="range upside down",
        ),
        pytest.param(
            ["predict", "x", "--weights", "w", "--tile", "wide"], "--tile", id="no number"
        ),
        pytest.param(
            ["predict", "x", "--weights", "w", "--precision", "fp8"], "fp32", id="no choice"
        ),
        pytest.param(
            ["predict", "x", "--weights", "w", "--tile", "99", "--overlap", "99"],
            "overlap 99 must be less than tile 99",
            id="values that exclude each other",
        ),
        pytest.param(
            ["predict", "no/where", "--weights", "w"], "no/where does not exist", id="path"
        ),
        pytest.param(["presets", "d2det_r5O"], "did you mean d2det_r50", id="preset"),
        pytest.param(["bench", "--preset", "d2det_r5O"], "d2det_r50", id="preset to bench"),
        pytest.param(["bench"], "either --preset or --weights", id="nothing to bench"),
    ],
)
def test_mistakes_are_one_line(
    args: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in mistakes(capsys, *args)


def test_wrong_weights_are_one_line(
    tmp_path: Path, lake: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, cut, pickled = (tmp_path / name for name in ("w.txt", "cut.safetensors", "w.pth"))
    text.write_text("no weights")
    cut.write_bytes(weights.read_bytes()[:-100])
    torch.save({"state_dict": {"a": torch.zeros(1)}}, pickled)
    for path in (text, cut, pickled, tmp_path / "none"):
        assert path.name in mistakes(capsys, "predict", lake, "--weights", path)
    flipped = bytearray(weights.read_bytes())
    flipped[-5] ^= 1
    cut.write_bytes(flipped)
    assert "damaged" in mistakes(capsys, "predict", lake, "--weights", cut)
    assert "gpu" in mistakes(capsys, "predict", lake, "--weights", weights, "--device", "gpu")


def test_wrong_checkpoints_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tmp_path / "official.pth"
    torch.save({"state_dict": {"neck.strange": torch.zeros(1)}}, checkpoint)
    out = tmp_path / "w.safetensors"
    args = ["convert", checkpoint, "-o", out, "--preset"]
    message = mistakes(capsys, *args, "d2det_r50")
    assert "missing" in message
    assert "1 left over: neck.strange" in message
    assert "d2det_r50" in mistakes(capsys, *args, "d2det_r5O")
    checkpoint.write_text("no checkpoint")
    assert "official.pth" in mistakes(capsys, *args, "d2det_r50")
    assert not out.exists()


def test_predict_writes_rows_and_drawings_and_names_bad_files(
    tmp_path: Path, lake: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, drawn = tmp_path / "out.json", tmp_path / "drawn"
    args = ["predict", lake, "--weights", weights, "--json", out, "--save-dir", drawn]
    assert cli.main([str(arg) for arg in [*args, "--draw-threshold", "0.1"]]) == 0
    captured = capsys.readouterr()
    assert "broken.png: truncated" in captured.err
    assert "2 of 3 pictures" in captured.err
    images = ResultFile.model_validate_json(out.read_text()).images
    assert [image.file_name for image in images] == ["a.png", "broken.png", "tief ü/b.jpg"]
    assert [image.error and image.error.reason for image in images] == [None, "truncated", None]
    assert (images[0].width, images[0].height) == (90, 70)
    assert images[0].detections[0].label.startswith("class")
    assert images[0].detections[0].category_id in (1, 11, 21)
    assert images[0].detections[0].mask is not None
    drawings = sorted(str(p.relative_to(drawn)) for p in drawn.rglob("*.jpg"))
    assert drawings == ["a.png.jpg", "tief ü/b.jpg"]
    assert cv2.imread(str(drawn / "a.png.jpg")).shape == (70, 90, 3)


def test_predict_prints_what_pictures_hold_without_an_output(
    lake: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["predict", lake / "a.png", "--weights", weights, "--draw-threshold", "0.1"]
    assert cli.main([str(arg) for arg in args]) == 0
    assert "class" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options", [["--tile", "64", "--overlap", "16"], ["--tta"], ["--precision", "bf16"]]
)
def test_predict_in_every_mode(
    options: list[str], tmp_path: Path, lake: Path, weights: Path
) -> None:
    out = tmp_path / "out.json"
    args = ["predict", lake / "a.png", "--weights", weights, "--json", out, *options]
    assert cli.main([str(arg) for arg in args]) == 0
    (image,) = json.loads(out.read_text())["images"]
    assert image["detections"]


def test_predict_fails_when_no_picture_could_be_read(
    tmp_path: Path, lake: Path, weights: Path
) -> None:
    out = tmp_path / "out.json"
    args = ["predict", lake / "broken.png", "--weights", weights, "--json", out]
    assert cli.main([str(arg) for arg in args]) == 1
    (image,) = json.loads(out.read_text())["images"]
    assert image["error"]["reason"] == "truncated"


@pytest.mark.parametrize(
    ("option", "path", "code"),
    [
        pytest.param("--json", ".", 2, id="results into a folder"),
        pytest.param("--json", "a.png/out.json", 2, id="results below a file"),
        pytest.param("--save-dir", "a.png", 2, id="drawings into a file"),
        pytest.param("--json", "/proc/no/out.json", 2, id="a folder that cannot be made"),
    ],
)
def test_outputs_that_cannot_be_written_are_one_line(
    option: str,
    path: str,
    code: int,
    lake: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = ["predict", lake / "a.png", "--weights", weights, option, lake / path]
    assert cli.main([str(arg) for arg in args]) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_doctor_and_presets_speak_json(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out)["torch"] == torch.__version__
    assert cli.main(["presets", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "d2det_r50"
    assert cli.main(["presets", "d2det_lite"]) == 0
    assert json.loads(capsys.readouterr().out)["input"]["short_side"] == 448


def test_bench_measures_the_parts(tmp_path: Path, weights: Path) -> None:
    out = tmp_path / "bench.json"
    args = ["bench", "--weights", weights, "--repeats", "1", "--json", out]
    assert cli.main([str(arg) for arg in args]) == 0
    assert set(json.loads(out.read_text())["median_ms"]) >= {"network", "picture to detections"}


def test_debugging_shows_where_an_error_was_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D2DET_DEBUG", "1")
    with pytest.raises(ValueError, match="nope"):
        cli.main(["presets", "nope"])


def test_output_into_a_closed_pipe_ends_quietly() -> None:
    script = f"{sys.executable} -m d2det_platform.cli presets | head -c 10"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, env=os.environ
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param("d2det pr", ["predict", "presets"], id="verbs"),
        pytest.param("d2det predict --ti", ["--tile"], id="options"),
        pytest.param("d2det predict --js", ["--json"], id="named option"),
        pytest.param("d2det predict --limits.max-p", ["--limits.max-pixels"], id="nested option"),
        pytest.param("d2det predict some", [], id="files are left to the shell"),
    ],
)
def test_the_shell_completes(
    words: str, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["completion", "bash"]) == 0
    count = len(words.split())
    call = f"COMP_WORDS=({words}); COMP_CWORD={count - 1}; _d2det 2>/dev/null; "
    script = capsys.readouterr().out + call + 'printf "%s\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected
