from __future__ import annotations

import pytest

from d2det.config import Preset
from d2det.presets import PRESETS, categories, get_preset

NAMES = [
    "d2det_r50",
    "d2det_r101",
    "d2det_r101_dcn",
    "d2det_r101_dcn_multiscale",
    "d2det_r101_instance",
    "d2det_r101_uavdt",
    "d2det_r101_isaid",
    "faster_rcnn_r50",
    "faster_rcnn_r50_dlr",
    "faster_rcnn_r50_drp",
    "d2det_lite",
    "d2det_lite_instance",
    "d2det_tiny",
    "d2det_tiny_instance",
]


def test_every_row_of_the_paper_has_a_preset():
    assert list(PRESETS) == NAMES
    assert all(PRESETS[name].name == name for name in NAMES)
    assert all(preset.summary and preset.paper for preset in PRESETS.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_survives_its_json_dump(name):
    preset = get_preset(name)
    assert Preset.model_validate_json(preset.model_dump_json()) == preset


@pytest.mark.parametrize("name", NAMES)
def test_class_names_fit_the_number_of_classes(name):
    preset = get_preset(name)
    assert not preset.classes or len(preset.classes) == preset.model.num_classes


def test_an_unknown_name_is_answered_with_the_nearest_ones():
    with pytest.raises(ValueError, match=r"'d2det_r51'.*d2det_r50"):
        get_preset("d2det_r51")


def test_official_settings_are_those_of_the_four_released_configurations():
    r50, r101, dcn, instance = (
        get_preset(f"d2det_{name}").model for name in ("r50", "r101", "r101_dcn", "r101_instance")
    )
    assert [m.roi_pooling.samples_per_bin for m in (r50, r101, dcn, instance)] == [2, 1, 1, 1]
    assert [m.rpn.test_top_n for m in (r50, r101, dcn, instance)] == [1000, 1000, 1000, 700]
    thresholds = [(m.inference.score_threshold, m.inference.nms_iou) for m in (r50, instance)]
    assert thresholds == [(0.03, 0.5), (0.05, 0.3)]
    assert [m.inference.max_regressed for m in (r50, instance)] == [125, 100]
    assert [m.inference.soft_nms for m in (r50, instance)] == [True, False]
    assert [m.backbone.deformable for m in (r50, r101, dcn, instance)] == [
        False,
        False,
        True,
        False,
    ]
    assert [m.mask is not None for m in (r50, r101, dcn, instance)] == [False, False, False, True]


def test_category_tables_have_unique_ids_and_names():
    for table, size in ((categories.COCO, 80), (categories.ISAID, 15), (categories.UAVDT, 1)):
        assert len(table) == size
        assert len({c.id for c in table}) == len({c.name for c in table}) == size
    assert [c.id for c in categories.COCO[:13]] == [*range(1, 12), 13, 14]
    assert categories.COCO[-1].id == 90
