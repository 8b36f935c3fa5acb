import cv2
import numpy as np
import pytest

from d2det.config import InputConfig, TrainConfig
from d2det.data.check import check_dataset
from d2det.data.coco import open_coco
from d2det.data.loader import TrainingLoader
from d2det.structures import Category
from tests.d2det.data.bad_annotations import CASES, Case, write

REFUSED = [case for case in CASES if case.refused]
ACCEPTED = [case for case in CASES if not case.refused]


def lines_of(problems, kind):
    return [str(problem) for problem in problems if kind in problem.kind]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_meaningless_data_are_refused_by_name(case, tmp_path):
    path = write(case, tmp_path)
    report = check_dataset(path)
    lines = lines_of(report.errors, case.refused)
    assert lines, report.text()
    assert any(all(word in line for word in case.named) for line in lines), lines
    assert all(str(tmp_path) in line for line in lines)
    with pytest.raises(ValueError, match=case.refused):
        report.raise_if_bad()


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.name)
def test_whatever_is_not_refused_gives_sound_batches(case, tmp_path):
    path = write(case, tmp_path)
    report = check_dataset(path)
    report.raise_if_bad()
    lines = lines_of(report.warnings, case.warned or "nothing")
    assert bool(lines) == bool(case.warned), report.text()
    assert all(any(word in line for line in lines) for word in case.named)

    loader = TrainingLoader(
        open_coco(path), InputConfig(short_side=64, long_side=96), TrainConfig(global_batch=2)
    )
    seen = 0
    for batch in loader.batches(0):
        assert batch.images.pixels.isfinite().all()
        for target in batch.targets:
            assert target.boxes.isfinite().all()
            assert (target.boxes[:, 2:] - target.boxes[:, :2] >= 1).all()
            assert (target.boxes >= 0).all()
            assert (target.boxes[:, 2:] <= 96).all()
            assert ((target.labels >= 0) & (target.labels < 3)).all()
            seen += len(target)
    assert seen > 0


def test_sound_data_have_nothing_to_report(tmp_path):
    path = write(Case("sound", lambda document, images: None), tmp_path)
    report = check_dataset(path)
    assert report.problems == ()
    assert (report.num_images, report.num_objects) == (3, 4)
    report.raise_if_bad()


def test_a_model_without_masks_does_not_need_them(tmp_path):
    for case in CASES:
        if case.refused in ("no masks", "mask missing"):
            path = write(case, tmp_path / case.name)
            check_dataset(path, masks=False).raise_if_bad()
            assert open_coco(path)[1].masks is None


def test_case_names_are_unique_and_many():
    assert len({case.name for case in CASES}) == len(CASES) >= 80


def test_every_problem_is_found_in_one_go(tmp_path):
    def spoil(document, images):
        document["annotations"][0]["bbox"][2] = -1
        document["annotations"][1]["category_id"] = 99
        document["images"].append({"id": 40, "file_name": "40.jpg", "height": 5, "width": 5})

    report = check_dataset(write(Case("three", spoil), tmp_path))
    assert {p.kind for p in report.errors} == {"bad box", "unknown class", "missing picture"}
    text = report.text()
    assert "image 10, annotation 1: bad box: bbox [8, 4, -1, 24] has a negative width" in text
    assert text.splitlines()[-1] == "4 pictures, 2 objects: 3 errors, 2 warnings"


def test_long_series_are_cut_short(tmp_path):
    def spoil(document, images):
        document["annotations"] += [{"id": i} for i in range(100, 150)]

    text = check_dataset(write(Case("many", spoil), tmp_path)).text(max_per_kind=3)
    assert "unknown image: 47 more like these" in text


def test_headers_alone_miss_damaged_data_but_are_enough_for_sizes(tmp_path):
    def spoil(document, images):
        data = (images / "20.jpg").read_bytes()
        (images / "20.jpg").write_bytes(data[: len(data) // 2])
        document["images"][2]["width"] = 95

    path = write(Case("both", spoil), tmp_path)
    assert {p.kind for p in check_dataset(path, decode=False).errors} == {"wrong picture size"}
    kinds = {p.kind for p in check_dataset(path).errors}
    assert kinds == {"wrong picture size", "unreadable picture"}


def test_data_must_fit_the_classes_of_a_model(tmp_path):
    path = write(Case("sound", lambda document, images: None), tmp_path)
    classes = [Category(2, "car"), Category(5, "plane"), Category(6, "ship")]
    check_dataset(path, categories=classes).raise_if_bad()
    report = check_dataset(path, categories=classes[:1])
    assert {p.kind for p in report.errors} == {"foreign category", "unknown class"}


def test_nothing_at_the_path_is_a_finding_too(tmp_path):
    assert [p.kind for p in check_dataset(tmp_path / "nowhere").errors] == ["no annotations"]
    assert [p.kind for p in check_dataset(tmp_path / "no.json").errors] == ["cannot be read"]


def test_progress_counts_to_the_end(tmp_path):
    path = write(Case("sound", lambda document, images: None), tmp_path)
    calls = []
    check_dataset(path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_rotated_photographs_are_explained(tmp_path):
    """A phone's portrait, annotated before its EXIF rotation was applied."""

    def spoil(document, images):
        pixels = np.zeros((64, 96, 3), np.uint8)
        data = cv2.imencode(".jpg", pixels)[1].tobytes()
        exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
        segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
        (images / "20.jpg").write_bytes(data[:2] + segment + data[2:])

    report = check_dataset(write(Case("rotated", spoil), tmp_path))
    (problem,) = report.errors
    assert problem.kind == "wrong picture size"
    assert "EXIF" in problem.detail
