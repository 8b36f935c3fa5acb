from __future__ import annotations

import pytest
import torch

from d2det.checkpoints.names import MismatchError
from d2det.checkpoints.official import convert, convert_file, official_shapes
from d2det.checkpoints.weights import read_weights
from d2det.config import BackboneConfig, MaskConfig, ModelConfig, Preset, RegressionConfig
from d2det.presets import get_preset
from tests.oracle.trace import official_recipe

CONFIGURATIONS = {
    "r50_detection": "d2det_r50",
    "r101_detection": "d2det_r101",
    "r101_dcn_detection": "d2det_r101_dcn",
    "r101_instance": "d2det_r101_instance",
}
SMALL = Preset(
    name="small",
    summary="",
    classes=("car", "ship"),
    model=ModelConfig(
        num_classes=2,
        backbone=BackboneConfig(kind="resnet50", deformable=True, fpn_channels=8),
        regression=RegressionConfig(channels=8, num_convs=2, norm_groups=2),
        mask=MaskConfig(channels=16, scoring_hidden=4),
    ),
)


def official_state(preset: Preset) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(t.shape) for name, t in official_shapes(preset.model).items()}


@pytest.mark.parametrize(("recipe", "preset"), CONFIGURATIONS.items())
def test_all_tensors_of_the_official_configuration_have_a_place(recipe, preset):
    theirs = {p["name"]: tuple(p["shape"]) for p in official_recipe(recipe)["params"]}
    ours = {n: tuple(t.shape) for n, t in official_shapes(get_preset(preset).model).items()}
    assert ours == theirs


def test_background_moves_from_first_to_last_and_leaves_the_masks():
    state = official_state(SMALL)
    ours = convert(state, SMALL, "file")
    theirs = state["bbox_head.fc_cls.weight"]
    assert torch.equal(ours["classification.logits.weight"], theirs[[1, 2, 0]])
    assert torch.equal(ours["mask.logits.bias"], state["D2Det_head.D2Det_instance.bias"][1:])
    assert torch.equal(
        ours["mask.scoring.ious.weight"], state["D2Det_head.fc_instance_iou.weight"][1:]
    )


def test_offset_predictors_of_very_old_files_are_found():
    state = official_state(SMALL)
    old = {name.replace(".conv2.conv_offset.", ".conv2_offset."): t for name, t in state.items()}
    assert old.keys() != state.keys()
    ours, from_old = convert(state, SMALL, "file"), convert(old, SMALL, "file")
    assert all(torch.equal(ours[name], from_old[name]) for name in ours)


def test_every_tensor_that_does_not_fit_is_named():
    state = official_state(SMALL)
    del state["rpn_head.rpn_cls.bias"]
    state["surprise"] = torch.zeros(1)
    state["neck.fpn_convs.0.conv.bias"] = torch.zeros(9)
    with pytest.raises(MismatchError) as raised:
        convert(state, SMALL, "file")
    mismatch = raised.value.mismatch
    assert mismatch.missing == ("rpn_head.rpn_cls.bias",)
    assert mismatch.left_over == ("surprise",)
    assert mismatch.misshapen == ("neck.fpn_convs.0.conv.bias (9,) instead of (8,)",)
    assert len(mismatch.lines()) == 3
    message = str(raised.value)
    assert "\n" not in message
    for part in ("small", "rpn_head.rpn_cls.bias", "surprise", "(9,) instead of (8,)"):
        assert part in message


def test_the_later_port_s_checkpoints_are_told_apart():
    state = {f"roi_head.{name}": tensor for name, tensor in official_state(SMALL).items()}
    with pytest.raises(ValueError, match=r"mmdetection 2\.1"):
        convert(state, SMALL, "file")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "torch 1.1"])
def test_a_file_becomes_verified_weights(tmp_path, legacy):
    state = official_state(SMALL)
    content = {"meta": {"epoch": 24, "CLASSES": ("car", "ship")}, "state_dict": state}
    source, destination = tmp_path / "official.pth", tmp_path / "ours.safetensors"
    torch.save(content, source, _use_new_zipfile_serialization=not legacy)
    digest = convert_file(source, destination, SMALL)
    weights = read_weights(destination)
    assert weights.digest == digest
    assert weights.preset == SMALL
    assert [(c.id, c.name) for c in weights.categories] == [(1, "car"), (2, "ship")]
    assert torch.equal(weights.tensors["rpn.conv.bias"], state["rpn_head.rpn_conv.bias"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no file"),
        (b"not a checkpoint", "cannot be read"),
        ({"state_dict": {}}, "no state dict"),
        ({"state_dict": {"a": 1}}, "no state dict"),
        ([1, 2], "no state dict"),
    ],
    ids=["absent", "garbage", "empty", "no tensors", "a list"],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, reason):
    source = tmp_path / "official.pth"
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content is not None:
        torch.save(content, source)
    with pytest.raises(ValueError, match=reason) as raised:
        convert_file(source, tmp_path / "out", SMALL)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


class _Payload:
    def __reduce__(self):
        return (print, ("code ran",))


def test_code_in_a_checkpoint_never_runs(tmp_path, capsys):
    source = tmp_path / "official.pth"
    torch.save({"state_dict": {"a": _Payload()}}, source)
    with pytest.raises(ValueError, match="cannot be read"):
        convert_file(source, tmp_path / "out", SMALL)
    assert "code ran" not in capsys.readouterr().out
