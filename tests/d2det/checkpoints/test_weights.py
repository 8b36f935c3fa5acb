from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import d2det
from d2det.checkpoints.weights import load_detector, read_weights, save_weights
from d2det.config import Preset
from d2det.structures import Category
from tests.d2det.models.small import CONFIG, pictures, small_detector

CATEGORIES = (Category(3, "car"), Category(7, "ship"), Category(1, "plane"))
PRESET = Preset(name="small", summary="", model=CONFIG)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, small_detector(), preset=PRESET, categories=CATEGORIES)
    return path


def rewritten(path, **changes):
    """Writes the file again with other metadata; None removes an entry."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() | changes
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {k: v for k, v in metadata.items() if v is not None})
    return path


def test_a_saved_detector_comes_back_with_all_it_needs(saved):
    loaded = d2det.load_detector(saved)
    assert loaded.categories == CATEGORIES
    assert loaded.preset.classes == ("car", "ship", "plane")
    assert loaded.preset.model == CONFIG
    assert loaded.preset.input == PRESET.input
    assert loaded.digest == read_weights(saved).digest
    batch = pictures((90, 120))
    (expected,), (found,) = small_detector().detect(batch), loaded.model.detect(batch)
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-4, atol=1e-2)


def test_equal_weights_have_an_equal_digest_whatever_their_layout(tmp_path):
    model = small_detector()
    plain = save_weights(tmp_path / "a", model, preset=PRESET, categories=CATEGORIES)
    model.to(memory_format=torch.channels_last)
    last = save_weights(tmp_path / "b", model, preset=PRESET, categories=CATEGORIES)
    assert plain == last
    with torch.no_grad():
        model.rpn.conv.bias[0] += 1e-6
    assert save_weights(tmp_path / "c", model, preset=PRESET, categories=CATEGORIES) != plain


def test_the_network_s_own_configuration_is_what_is_remembered(tmp_path):
    other = PRESET.model_copy(update={"model": CONFIG.model_copy(update={"num_classes": 99})})
    save_weights(tmp_path / "w", small_detector(), preset=other, categories=CATEGORIES)
    assert read_weights(tmp_path / "w").preset.model == CONFIG


def test_saving_leaves_no_temporary_file(saved):
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_categories_must_fit_the_network(tmp_path):
    with pytest.raises(ValueError, match="2 categories for a network of 3 classes"):
        save_weights(tmp_path / "w", small_detector(), preset=PRESET, categories=CATEGORIES[:2])


def test_a_flipped_bit_is_noticed(saved):
    content = bytearray(saved.read_bytes())
    content[-100] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load_detector(saved)


def test_a_file_that_does_not_fit_its_own_preset_is_refused(saved):
    metadata = json.loads(PRESET.model_dump_json())
    metadata["model"]["num_classes"] = 5
    rewritten(saved, preset=json.dumps(metadata))
    with pytest.raises(ValueError, match=r"does not fit its own preset.*misshapen") as raised:
        load_detector(saved)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"preset": None}, "lacks preset"),
        ({"version": "99"}, "format version 99"),
        ({"preset": "{"}, "metadata that cannot be read"),
        ({"preset": '{"name": "x", "sumary": ""}'}, "did you mean 'summary'"),
        ({"categories": '[{"id": 1}]'}, "metadata that cannot be read"),
    ],
    ids=["no preset", "version", "broken preset", "unknown key", "categories"],
)
def test_metadata_of_others_is_refused_in_one_line(saved, changes, reason):
    with pytest.raises(ValueError, match=reason) as raised:
        read_weights(rewritten(saved, **changes))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [None, b"", b"\x80\x02garbage"], ids=["none", "empty", "pth"])
def test_files_that_are_no_weights_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=str(path)) as raised:
        load_detector(path)
    assert "\n" not in str(raised.value)


def test_an_unknown_precision_is_refused(saved):
    with pytest.raises(ValueError, match="'int8'"):
        load_detector(saved, precision="int8")
