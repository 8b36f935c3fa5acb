"""The one door to inference: same result alone or in any company, in the frame of the original."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from d2det.boxes import clip, rescale
from d2det.checkpoints.weights import LoadedDetector
from d2det.config import InputConfig, Preset
from d2det.inference.options import PredictOptions
from d2det.inference.predictor import Predictor, choose_device
from d2det.inference.preprocess import resize_image, resized_size, to_batch
from d2det.inference.windows import ArrayScene
from d2det.structures import Category, Detections
from d2det_ops import masks_to_rle
from tests.d2det.models.small import CONFIG, small_detector

INPUT = InputConfig(short_side=64, long_side=96)
SIZES = [(50, 70), (51, 70), (90, 60), (64, 96), (50, 70), (33, 40)]


@pytest.fixture(scope="module")
def detector() -> LoadedDetector:
    preset = Preset(name="small", summary="", model=CONFIG, input=INPUT)
    categories = tuple(Category(id=10 * k, name=f"class {k}") for k in range(3))
    return LoadedDetector(small_detector(), preset, categories, digest="")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3))
    return np.kron(noise, np.ones((4, 4, 1)))[:height, :width].astype(np.uint8)


PICTURES = [picture(*size, seed=i) for i, size in enumerate(SIZES)]


def equal(a: Detections, b: Detections) -> bool:
    return (
        torch.equal(a.boxes, b.boxes)
        and torch.equal(a.scores, b.scores)
        and torch.equal(a.labels, b.labels)
        and a.masks == b.masks
        and a.size == b.size
    )


def close(a: Detections, b: Detections) -> bool:
    return torch.allclose(a.boxes, b.boxes, atol=1e-3) and torch.equal(a.labels, b.labels)


def test_detections_lie_in_the_original_frame_with_masks_of_its_size(
    detector: LoadedDetector,
) -> None:
    (found,) = Predictor(detector).predict(PICTURES[:1])
    assert 0 < len(found) <= 10
    assert found.size == (50, 70)
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2] <= 70).all()
    assert (found.boxes[:, 3] <= 50).all()
    assert all(mask["size"] == (50, 70) for mask in found.masks)
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)


def test_boxes_and_masks_are_those_of_the_network_mapped_back(detector: LoadedDetector) -> None:
    image = PICTURES[0]
    resized = resize_image(image, resized_size(*image.shape[:2], 64, 96))
    (raw,) = detector.model.detect(to_batch([resized], INPUT))
    (found,) = Predictor(detector).predict([image])
    scale = min(64 / 50, 96 / 70)
    boxes = rescale(raw.boxes, 1 / scale)
    assert torch.equal(found.boxes, clip(boxes, 50, 70))
    assert torch.equal(found.scores, raw.scores)
    assert list(found.masks) == masks_to_rle(raw.masks, boxes, height=50, width=70)


@pytest.mark.parametrize("batch_pixels", [1, 20_000, 10**9])
def test_a_picture_is_the_same_alone_and_in_any_company(
    detector: LoadedDetector, batch_pixels: int
) -> None:
    predictor = Predictor(detector, PredictOptions(batch_pixels=batch_pixels))
    alone = [predictor.predict([image])[0] for image in PICTURES]
    together = predictor.predict(PICTURES)
    backwards = predictor.predict(PICTURES[::-1])[::-1]
    for a, b, c in zip(alone, together, backwards, strict=True):
        # The CPU's matrix products may order their sums by batch size.
        assert close(a, b)
        assert close(a, c)


def test_no_pictures_no_detections(detector: LoadedDetector) -> None:
    assert Predictor(detector).predict([]) == []


def test_a_threshold_is_the_cut_of_the_full_result(detector: LoadedDetector) -> None:
    (everything,) = Predictor(detector).predict(PICTURES[:1])
    threshold = float(everything.scores[len(everything) // 2])
    (found,) = Predictor(detector, PredictOptions(score_threshold=threshold)).predict(PICTURES[:1])
    assert equal(found, everything.select(everything.scores > threshold))


def test_max_detections_cuts_and_extends(detector: LoadedDetector) -> None:
    (few,) = Predictor(detector, PredictOptions(max_detections=2)).predict(PICTURES[:1])
    (usual,) = Predictor(detector).predict(PICTURES[:1])
    (many,) = Predictor(detector, PredictOptions(max_detections=40)).predict(PICTURES[:1])
    assert len(few) == 2
    assert equal(few, usual.select(torch.arange(2)))
    assert len(many) > len(usual) == 10


def test_masks_can_be_left_out_without_changing_boxes(detector: LoadedDetector) -> None:
    (plain,) = Predictor(detector).predict(PICTURES[:1])
    (boxes_only,) = Predictor(detector, PredictOptions(masks=False)).predict(PICTURES[:1])
    assert boxes_only.masks is boxes_only.mask_scores is None
    assert torch.equal(plain.boxes, boxes_only.boxes)
    assert Predictor(detector).predict(PICTURES[:1])[0].masks is not None


def test_options_of_one_predictor_do_not_leak_into_another(detector: LoadedDetector) -> None:
    before = detector.model.config
    Predictor(detector, PredictOptions(max_detections=1, masks=False, score_threshold=0.9))
    assert detector.model.config == before


def test_tiles_are_predicted_like_pictures_and_merged(detector: LoadedDetector) -> None:
    image = picture(100, 150)
    options = PredictOptions(tile=64, overlap=20)
    predictor = Predictor(detector, options)
    (found,) = predictor.predict([image])
    merged = predictor.predict_scene(ArrayScene(image))
    assert equal(found, merged.detections)
    assert found.size == (100, 150)
    assert merged.audit.found >= merged.audit.objects == len(found) > 0
    for mask, box in zip(found.masks, found.boxes, strict=True):
        x, y, width, height = coco.toBbox(mask)
        if width and height:
            # Masks reach over their box by at most half a mask cell, and pixels are whole.
            margin = float((box[2:] - box[:2]).max()) / 28 + 1
            assert x >= box[0] - margin
            assert y >= box[1] - margin


def test_a_picture_no_larger_than_a_tile_is_not_cut(detector: LoadedDetector) -> None:
    plain = Predictor(detector).predict(PICTURES[:2])
    tiled = Predictor(detector, PredictOptions(tile=70, overlap=10)).predict(PICTURES[:2])
    assert all(equal(a, b) for a, b in zip(plain, tiled, strict=True))


def test_sizes_follow_the_preset_unless_asked_for() -> None:
    preset = InputConfig(short_side=800, long_side=1333)

    def sides(**options: int) -> tuple[int, int]:
        chosen = PredictOptions(**options).input_of(preset)
        return chosen.short_side, chosen.long_side

    assert sides() == (800, 1333)
    assert sides(short_side=400) == (400, 666)
    assert sides(long_side=1000) == (800, 1000)
    assert sides(long_side=600) == (600, 600)
    assert sides(short_side=400, long_side=2000) == (400, 2000)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tile": 100, "overlap": 100}, "overlap 100"),
        ({"short_side": 900, "long_side": 800}, "short_side 900"),
        ({"score_threshold": 1.5}, "less than or equal to 1"),
        ({"score_treshold": 0.5}, "did you mean 'score_threshold'"),
        ({"precision": "fp64"}, "fp32"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PredictOptions(**options)


def test_unknown_devices_are_refused_in_one_line() -> None:
    assert choose_device("cpu").type == "cpu"
    for name in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=name) as caught:
            choose_device(name)
        assert "\n" not in str(caught.value)
