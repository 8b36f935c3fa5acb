import json

import numpy as np
import pycocotools.coco
import pycocotools.mask
import pytest

from d2det.data.coco import CocoDataset, find_annotations, find_images, open_coco
from d2det.data.coco_json import read_coco
from d2det.structures import Category
from tests.shared import shared_dir


def annotation(**changes):
    plain = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 10, 8], "iscrowd": 0}
    return plain | changes


def test_categories_are_labelled_in_ascending_order_of_their_ids(make_coco):
    images, path = make_coco([(20, 30)], [annotation(category_id=3), annotation(id=2)])
    data = CocoDataset(images, path)
    assert data.categories == (Category(1, "plane"), Category(3, "car"))
    assert data[0].labels.tolist() == [1, 0]


def test_boxes_are_half_open(make_coco):
    images, path = make_coco([(20, 30)], [annotation(bbox=[2.5, 3, 10, 8.25])])
    assert CocoDataset(images, path)[0].boxes.tolist() == [[2.5, 3.0, 12.5, 11.25]]


def test_annotations_are_grouped_by_picture_whatever_their_order(make_coco):
    rows = [annotation(id=i, image_id=image) for i, image in ((5, 3), (1, 1), (9, 3), (2, 1))]
    index = CocoDataset(*make_coco([(9, 9)] * 3, rows)).index
    assert [index.annotation_ids[index.annotations(i)].tolist() for i in range(3)] == [
        [1, 2],
        [],
        [5, 9],
    ]


def test_crowds_are_indexed_but_not_given_as_objects(make_coco):
    data = CocoDataset(*make_coco([(20, 30)], [annotation(), annotation(id=2, iscrowd=1)]))
    assert data.index.is_ignored.tolist() == [False, True]
    assert len(data[0].labels) == 1


def test_a_picture_has_masks_only_where_each_of_its_objects_has_one(make_coco):
    polygon = [[1, 1, 9, 1, 9, 9]]
    rows = [
        annotation(id=1, segmentation=polygon),
        annotation(id=2, image_id=2, segmentation=polygon),
        annotation(id=3, image_id=2, segmentation=[]),
        annotation(id=4, image_id=2, segmentation="[]"),
    ]
    data = CocoDataset(*make_coco([(20, 30)] * 3, rows))
    assert len(data[0].masks) == 1
    assert data[1].masks is None
    assert data[2].masks == ()
    assert CocoDataset(*make_coco([(20, 30)] * 3, rows), masks=False)[0].masks is None


def test_a_models_classes_decide_the_labels(make_coco):
    images, path = make_coco([(20, 30)], [annotation(category_id=3)])
    classes = (Category(7, "ship"), Category(3, "car"), Category(1, "plane"))
    assert CocoDataset(images, path, categories=classes)[0].labels.tolist() == [1]
    with pytest.raises(ValueError, match=r"Category.*id=3, name='car'.*not among"):
        CocoDataset(images, path, categories=[Category(1, "plane"), Category(3, "truck")])


def test_pictures_are_rgb_and_of_the_size_the_file_says(make_coco):
    images, path = make_coco([(20, 30)], [])
    assert CocoDataset(images, path)[0].image.shape == (20, 30, 3)
    document = json.loads(path.read_text())
    document["images"][0]["height"] = 21
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"1\.png is \(20, 30\).*\(21, 30\)"):
        CocoDataset(images, path)[0]


def test_a_missing_picture_is_named(make_coco):
    images, path = make_coco([(20, 30)], [])
    (images / "1.png").unlink()
    with pytest.raises(ValueError, match=r"1\.png: io_error"):
        CocoDataset(images, path)[0]


@pytest.mark.parametrize(
    ("annotations", "picture", "path"),
    [
        ("annotations/instances_train2017.json", "train2017/1.jpg", ""),
        ("annotations/instances_train.json", "images/1.jpg", ""),
        ("annotations/instances_train2017.json", "images/train2017/1.jpg", ""),
        ("instances_train.json", "train/1.jpg", ""),
        ("instances_train.json", "images/1.jpg", ""),
        ("train/_annotations.coco.json", "train/1.jpg", ""),
        ("train.json", "1.jpg", ""),
        ("train/instancesonly_filtered_train.json", "train/images/1.jpg", ""),
        ("odd/labels.json", "images/1.jpg", "odd/labels.json"),
    ],
)
def test_usual_layouts_are_found(tmp_path, annotations, picture, path):
    for name in (annotations, picture):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_annotations(tmp_path / path, "train")
    assert found == str(tmp_path / annotations)
    folder = find_images(found, "1.jpg")
    assert (tmp_path / picture).samefile(f"{folder}/1.jpg")


def test_a_folder_without_annotations_says_where_they_were_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"looked for annotations/instances_val2017\.json"):
        open_coco(tmp_path, "val")


def test_data_sets_are_read_from_object_stores(make_coco):
    fsspec = pytest.importorskip("fsspec")
    images, path = make_coco([(20, 30)], [annotation()])
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/lake/instances_train.json", path.read_bytes())
    memory.pipe_file("/lake/images/1.png", (images / "1.png").read_bytes())
    remote = open_coco("memory://lake", "train")
    assert np.array_equal(remote[0].image, CocoDataset(images, path)[0].image)


@pytest.mark.parametrize("name", ["coco_subset", "nwpu_vhr10"])
def test_real_data_agree_with_pycocotools(name):
    path = shared_dir("data", name, "instances_val.json")
    index, reference = read_coco(path), pycocotools.coco.COCO(str(path))
    names = {c.id: c.name for c in index.categories}
    assert names == {c["id"]: c["name"] for c in reference.dataset["categories"]}
    assert len(index.annotation_ids) == len(reference.anns)
    for row, annotation_id in enumerate(index.annotation_ids.tolist()):
        theirs = reference.anns[annotation_id]
        x, y, w, h = theirs["bbox"]
        np.testing.assert_array_equal(index.boxes[row], np.float32([x, y, x + w, y + h]))
        assert index.categories[index.labels[row]].id == theirs["category_id"]
        rle = reference.annToRLE(theirs)
        assert index.masks[row] == rle["counts"]


def test_real_data_without_masks_are_read():
    data = open_coco(shared_dir("data", "bccd"), "val")
    assert data[0].masks is None
    assert len(data[0].labels) > 0
