from __future__ import annotations

from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from d2det.checkpoints.trunks import IMAGENET, load_trunk
from d2det.config import BackboneConfig
from d2det.models.build import build_detector
from tests.d2det.models.small import CONFIG, small_detector
from tests.shared import shared_dir

RESNET = CONFIG.model_copy(update={"backbone": BackboneConfig(deformable=True, fpn_channels=8)})


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_torchvision_weights_are_taken_without_their_classifier(tmp_path, suffix):
    reference = torchvision.models.mobilenet_v2(weights=None).state_dict()
    path = tmp_path / f"trunk.{suffix}"
    save_file(reference, path) if suffix == "safetensors" else torch.save(reference, path)
    model = small_detector()
    load_trunk(model, path)
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, reference[name])


def test_a_plain_resnet_fits_a_deformable_one_whose_offsets_start_at_zero(tmp_path):
    reference = torchvision.models.resnet50(weights=None).state_dict()
    torch.save(reference, tmp_path / "trunk.pth")
    model = build_detector(RESNET)
    load_trunk(model, tmp_path / "trunk.pth")
    conv = model.backbone.layer2[0].conv2
    assert torch.equal(conv.weight, reference["layer2.0.conv2.weight"])
    assert not conv.offset.weight.any()


def test_the_trunk_of_another_network_is_refused_in_one_line(tmp_path):
    torch.save(torchvision.models.mobilenet_v2(weights=None).state_dict(), tmp_path / "t.pth")
    with pytest.raises(ValueError, match="not a resnet50 trunk") as raised:
        load_trunk(build_detector(RESNET), tmp_path / "t.pth")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [None, b"junk", {"epoch": 3}], ids=["none", "junk", "no state"])
def test_other_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "t.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=str(path)):
        load_trunk(small_detector(), path)


def test_unreachable_downloads_say_what_to_do(monkeypatch):
    def unreachable(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(ValueError, match="give a file instead"):
        load_trunk(small_detector(), IMAGENET)


def test_imagenet_weights_at_hand_fit():
    load_trunk(
        small_detector(), shared_dir("data", "weights", "mobilenet_v2_features_imagenet.pth")
    )
