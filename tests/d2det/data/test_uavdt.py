import cv2
import numpy as np
import pytest

from d2det.config import InputConfig, TrainConfig
from d2det.data.export import to_coco
from d2det.data.transforms import training_example
from d2det.data.uavdt import open_uavdt, read_uavdt
from d2det.evaluation.results import read_ground_truth
from d2det.structures import Category

SEQUENCES = {
    "M0101": ("train", "1,0,0,1,0,0,1,0,0,0", 2),
    "M0701": ("train", "0,1,0,0,1,0,0,1,0,1", 3),
    "M0203": ("test", "0,0,1,0,0,1,0,0,1,0", 2),
}


@pytest.fixture(params=["authors", "redistributed"])
def root(request, tmp_path):
    """Three sequences of tiny white frames; frame n has boxes at n, one ignore region each."""
    authors = request.param == "authors"
    for name, (split, flags, count) in SEQUENCES.items():
        blank = " " if name == "M0701" else ""  # as in the authors' archive
        _write(tmp_path / "M_attr" / split / f"{name}{blank}_attr.txt", flags)
        rows = [f"{n},1,{n},2,20,10,1,2,{c}" for n in range(1, count + 1) for c in (1, 2)]
        rows.append(f"{count},7,50,30,40,40,2,4,3")  # leaves the picture
        regions = [f"{n},0,{10 * n},20,8,9,1,-1,-1" for n in range(1, count + 1)]
        if authors:
            frames = tmp_path / "UAV-benchmark-M" / name
            truth = tmp_path / "UAV-benchmark-MOTD_v1.0" / "GT"
            _write(truth / f"{name}_gt_whole.txt", "\n".join(rows) + "\n")
            _write(truth / f"{name}_gt.txt", "the tracking form")
            _write(truth / f"{name}_gt_ignore.txt", "\n".join(regions))
        else:
            frames = tmp_path / name / "img1"
            _write(tmp_path / name / "gt" / "gt_whole.txt", "\n".join(rows) + "\n\n")
            _write(tmp_path / name / "gt" / "gt_ignore.txt", "\n".join(regions))
        frames.mkdir(parents=True)
        for n in range(1, count + 1):
            cv2.imwrite(str(frames / f"img{n:06d}.jpg"), np.full((50, 80, 3), 255, np.uint8))
    return tmp_path


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_splits_hold_the_sequences_their_attribute_folder_names(root):
    train, test = read_uavdt(root, "train"), read_uavdt(root, "test")
    assert train.image_ids.tolist() == [101000001, 101000002, 701000001, 701000002, 701000003]
    assert test.image_ids.tolist() == [203000001, 203000002]
    assert [tuple(size) for size in train.image_sizes] == [(50, 80)] * 5


def test_all_kinds_of_vehicles_are_one_class(root):
    index = read_uavdt(root, "train")
    assert index.categories == (Category(1, "vehicle"),)
    assert set(index.labels.tolist()) == {0}
    objects = index.boxes[index.annotations(1)][~index.is_ignored[index.annotations(1)]]
    assert objects.tolist() == [[2, 2, 22, 12], [2, 2, 22, 12], [50, 30, 90, 70]]


def test_ignore_regions_are_black_and_not_trained_on(root):
    sample = open_uavdt(root, "train")[1]
    assert len(sample.labels) == 3
    assert sample.image[20:29, 20:28].max() == 0
    assert sample.image[35:, :20].min() > 200
    _, target = training_example(sample, InputConfig(short_side=50, long_side=80), TrainConfig(), 0)
    assert target.boxes[:, 2].max() <= 80


def test_attributes_follow_the_sequence(root):
    index = read_uavdt(root, "train")
    assert index.attributes[0] == {"daylight", "low altitude", "front view"}
    assert index.attributes[4] == {"night", "medium altitude", "side view", "long term"}


def test_the_export_evaluates_with_regions_and_attributes(root):
    truth = read_ground_truth(to_coco(read_uavdt(root, "test")))
    assert truth.crowd.sum() == 2
    assert truth.boxes[truth.crowd].tolist() == [[10, 20, 8, 9], [20, 20, 8, 9]]
    assert truth.attributes[0] == {"fog", "high altitude", "bird view"}


def test_a_missing_ignore_file_means_no_regions(root):
    for path in root.rglob("*gt_ignore.txt"):
        path.unlink()
    assert not read_uavdt(root, "train").is_ignored.any()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: _edit(root, "gt_whole", "9,1,1,1,5,5,1,1,1"), "frame 9 of M0203"),
        (lambda root: _edit(root, "gt_whole", "1,1,x,1,5,5,1,1,1"), r"whole.txt, line 1: '1,1,x"),
        (lambda root: _edit(root, "gt_whole", "1,1,1"), r"line 1: '1,1,1'"),
        (lambda root: _edit(root, "gt_ignore", "1,1,1,1,-5,5,1,-1,-1"), r"ignore.txt, line 1"),
        (lambda root: [p.unlink() for p in root.rglob("*gt_whole.txt")], "no .*gt_whole.txt of"),
        (lambda root: [p.unlink() for p in root.rglob("*.jpg")], "no pictures of sequence M0203"),
        (lambda root: [p.unlink() for p in root.rglob("*_attr.txt")], "no attribute files"),
        (lambda root: [p.write_text("1,0") for p in root.rglob("*_attr.txt")], "10 zeros or ones"),
    ],
)
def test_broken_files_are_named(root, spoil, message):
    spoil(root)
    with pytest.raises(ValueError, match=message):
        read_uavdt(root, "test")


def _edit(root, kind, text):
    for path in root.rglob(f"*{kind}.txt"):
        path.write_text(text)
