import json
import logging

import cv2
import numpy as np
import pytest

from d2det.data.coco import CocoDataset, open_coco
from d2det.data.cut import cut_dataset, patch_windows
from d2det.data.isaid import open_isaid
from d2det.data.masks import rasterise
from tests.d2det.data.test_masks import paint
from tests.shared import shared_dir

PLANE, SHIP, HARBOR = (0, 127, 255), (0, 0, 63), (0, 100, 155)
LABELS = {SHIP: 0, PLANE: 13, HARBOR: 14}


def write_scene(folder, stem, height, width, *, seed=0, count=60, apart=False):
    """Random discs and bars on noise; returns (label, mask) of each instance that can be seen."""
    random = np.random.default_rng(seed)
    classes, ids = (np.zeros((height, width, 3), np.uint8) for _ in range(2))
    colours = {}
    for _ in range(count):
        colour = tuple(random.integers(0, 256, 3).tolist())
        kind = list(LABELS)[int(random.integers(3))]
        x, y = int(random.integers(width)), int(random.integers(height))
        if random.random() < 0.5:
            radius = int(random.integers(1, 40))
            shape = {"center": (x, y), "radius": radius, "thickness": -1}
            cv2.circle(classes, color=kind, **shape)
            cv2.circle(ids, color=colour, **shape)
        else:
            end = (x + int(random.integers(-90, 90)), y)
            cv2.line(classes, (x, y), end, kind, 1)
            cv2.line(ids, (x, y), end, colour, 1)
        colours[colour] = LABELS[kind]
    picture = random.integers(0, 256, (height, width, 3), np.uint8)
    images = folder / "images"
    semantic = folder / "Semantic_masks" / "images" if apart else images
    instance = folder / "Instance_masks" / "images" if apart else images
    for place, name, pixels in (
        (images, f"{stem}.png", picture),
        (semantic, f"{stem}_instance_color_RGB.png", classes),
        (instance, f"{stem}_instance_id_RGB.png", ids),
    ):
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / name), pixels[..., ::-1])
    masks = {colour: (ids == colour).all(-1) for colour in colours}
    return picture, {c: (colours[c], mask) for c, mask in masks.items() if mask.any()}


def seen(data, position):
    """{(label, mask bytes)} of a picture of a data set."""
    height, width = data.index.image_sizes[position].tolist()
    sample = data[position]
    masks = paint(rasterise(sample.masks, height, width), height, width)
    return sorted((int(label), m.tobytes()) for label, m in zip(sample.labels, masks, strict=True))


@pytest.mark.parametrize("apart", [False, True])
def test_scenes_are_read_from_both_layouts(tmp_path, apart):
    picture, instances = write_scene(tmp_path / "train", "P0007", 200, 300, apart=apart)
    data = open_isaid(tmp_path)
    assert np.array_equal(data[0].image, picture)
    expected = sorted(
        (label, mask.astype(np.uint8).tobytes()) for label, mask in instances.values()
    )
    assert seen(data, 0) == expected
    for box, string in zip(data[0].boxes.tolist(), data[0].masks, strict=True):
        x, y, w, h = rasterise([string], 200, 300).rectangles[0].tolist()
        assert box == [x, y, x + w, y + h]


def test_patches_show_what_the_scene_shows_there(tmp_path):
    """Every instance of more than 10 pixels, clipped, with the same pixels; nothing else."""
    picture, instances = write_scene(tmp_path / "val", "P0007", 330, 500, count=90)
    cut_dataset(open_isaid(tmp_path, "val"), tmp_path / "out", "val", tile=160, overlap=40)
    data = open_coco(tmp_path / "out", "val")
    assert len(data) == 3 * 4
    for position, name in enumerate(data.index.file_names):
        stem, *corners = name.removesuffix(".png").split("_")
        y1, y2, x1, x2 = map(int, corners)
        assert (stem, y2 - y1, x2 - x1) == ("P0007", 160, 160)
        assert np.array_equal(data[position].image, picture[y1:y2, x1:x2])
        expected = []
        for label, mask in instances.values():
            part = mask[y1:y2, x1:x2].astype(np.uint8)
            outlines, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            if part.sum() > 10 and any(len(outline) >= 3 for outline in outlines):
                expected.append((label, part.tobytes()))
        assert seen(data, position) == sorted(expected)


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        ((800, 5000), [0], [0]),
        ((700, 700), [0], [0]),
        ((801, 801), [0, 1], [0, 1]),
        ((1400, 2000), [0, 600], [0, 600, 1200]),
        ((1401, 1999), [0, 600, 601], [0, 600, 1199]),
    ],
)
def test_windows_follow_the_authors_rules(size, rows, columns):
    windows = patch_windows(size, tile=800, overlap=200)
    assert sorted({w.y for w in windows}) == rows
    assert sorted({w.x for w in windows}) == columns
    if len(windows) == 1:
        assert (windows[0].height, windows[0].width) == size


def test_small_scenes_stay_whole_under_their_own_name(tmp_path):
    write_scene(tmp_path / "train", "P0007", 100, 500)
    path = cut_dataset(open_isaid(tmp_path), tmp_path / "out", "train", tile=160, overlap=40)
    assert open_coco(path).index.file_names == ("P0007.png",)


def test_patches_without_objects_can_be_left_out(tmp_path):
    write_scene(tmp_path / "train", "P0007", 400, 400, count=4, seed=1)
    data = open_isaid(tmp_path)
    counts = []
    for keep in (True, False):
        folder = tmp_path / str(keep)
        path = cut_dataset(data, folder, "train", tile=160, overlap=40, keep_empty=keep)
        counts.append(len(open_coco(path)))
    assert counts[0] == 9 > counts[1] > 0


def test_the_two_scenes_the_authors_skip_are_skipped(tmp_path):
    for stem in ("P1527", "P0001"):
        write_scene(tmp_path / "train", stem, 60, 60)
    assert open_isaid(tmp_path).index.file_names == ("P0001.png",)


def test_instances_without_a_class_colour_are_left_out_and_told(tmp_path, caplog):
    write_scene(tmp_path / "train", "P0001", 60, 60, count=3)
    path = tmp_path / "train" / "images" / "P0001_instance_color_RGB.png"
    cv2.imwrite(str(path), np.zeros((60, 60, 3), np.uint8))
    with caplog.at_level(logging.WARNING):
        assert len(open_isaid(tmp_path)[0].labels) == 0
    assert "P0001.png: instance" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda images: (images / "P1_instance_id_RGB.png").unlink(), "no labels P1_instance_id"),
        (lambda images: (images / "P1_instance_id_RGB.png").write_bytes(b""), "id_RGB.*empty"),
        (
            lambda images: cv2.imwrite(
                str(images / "P1_instance_color_RGB.png"), np.zeros((9, 9, 3), np.uint8)
            ),
            r"color_RGB.png is \(9, 9\)",
        ),
        (lambda images: [path.unlink() for path in images.iterdir()], "no scenes"),
    ],
)
def test_broken_labels_are_named(tmp_path, spoil, message):
    write_scene(tmp_path / "train", "P1", 60, 60)
    spoil(tmp_path / "train" / "images")
    with pytest.raises(ValueError, match=message):
        open_isaid(tmp_path)


def test_boxes_without_masks_are_kept_where_enough_of_them_is_seen(make_coco, tmp_path):
    rows = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]},
        {"id": 2, "image_id": 1, "category_id": 3, "bbox": [85, 10, 50, 20], "iscrowd": 1},
        {"id": 3, "image_id": 1, "category_id": 1, "bbox": [99, 50, 90, 20]},
    ]
    data = CocoDataset(*make_coco([(120, 190)], rows))
    patches = open_coco(cut_dataset(data, tmp_path / "out", "train", tile=100, overlap=20))
    found = {}
    for position, name in enumerate(patches.index.file_names):
        found[name] = patches.index.boxes[patches.index.annotations(position)].tolist()
    assert found == {
        "1_0_100_0_100.png": [[10, 10, 30, 30], [85, 10, 100, 30]],
        "1_0_100_80_180.png": [[5, 10, 55, 30], [19, 50, 100, 70]],
        "1_0_100_90_190.png": [[0, 10, 45, 30], [9, 50, 99, 70]],
        "1_20_120_0_100.png": [[10, 0, 30, 10]],
        "1_20_120_80_180.png": [[5, 0, 55, 10], [19, 30, 100, 50]],
        "1_20_120_90_190.png": [[0, 0, 45, 10], [9, 30, 99, 50]],
    }
    assert patches.index.is_ignored.sum() == 5


def test_pictures_of_one_name_in_several_folders_stay_apart(make_coco, tmp_path):
    images, path = make_coco([(20, 30), (20, 30)], [])
    document = json.loads(path.read_text())
    for number, name in enumerate(("a/1.png", "b/1.png")):
        (images / name).parent.mkdir()
        (images / document["images"][number]["file_name"]).rename(images / name)
        document["images"][number]["file_name"] = name
    path.write_text(json.dumps(document))
    cut = open_coco(cut_dataset(CocoDataset(images, path), tmp_path / "out", "train"))
    assert cut.index.file_names == ("a/1.png", "b/1.png")
    document["images"][1]["file_name"] = "a/1.jpg"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="two pictures are called a/1"):
        cut_dataset(CocoDataset(images, path), tmp_path / "out", "train")


def test_a_real_scene_is_cut(tmp_path):
    data = open_coco(shared_dir("data", "large", "instances_isaid_P0003.json"))
    path = cut_dataset(data, tmp_path, "train", tile=800, overlap=200)
    patches = open_coco(path)
    assert len(patches) == 4
    assert len(patches.index.boxes) > len(data.index.boxes)
    assert len(patches[0].masks) == len(patches[0].labels)
