from pathlib import Path

import pytest

from d2det_platform.train.command import parse

DATA = ["--data.train-images", "images", "--data.train-annotations", "train.json"]


def test_the_preset_supplies_the_defaults() -> None:
    options = parse(["--preset", "d2det_r101_instance", *DATA])
    assert options.model.backbone.kind == "resnet101"
    assert options.model.mask is not None
    assert options.train.lr == 0.02


def test_flags_override_the_file_and_the_file_the_preset(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("preset: d2det_lite\ntrain: {lr: 0.5, epochs: 3}\nname: from_file\n")
    options = parse(["--config", str(config), "--train.lr", "0.25", *DATA])
    assert (options.preset, options.name) == ("d2det_lite", "from_file")
    assert (options.train.lr, options.train.epochs) == (0.25, 3)
    assert options.model.backbone.kind == "mobilenet_v2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {lrr: 1}", "did you mean 'lr'"),
        ("- a list", "must hold options by name"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_bad_file_is_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(text)
    with pytest.raises(ValueError, match=message):
        parse(["--config", str(config), *DATA])


def test_the_data_is_required() -> None:
    with pytest.raises(ValueError, match="train-annotations is required"):
        parse(["--data.train-images", "images"])


def test_an_unknown_flag_ends_with_exit_code_2() -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["--train.lrr", "1", *DATA])
    assert stop.value.code == 2


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="d2det_r50"):
        parse(["--preset", "d2det_r5", *DATA])


def test_options_that_exclude_each_other_end_with_exit_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["--train.precision", "fp16", *DATA])
    assert stop.value.code == 2
    assert "needs --cluster.gpu" in capsys.readouterr().err
