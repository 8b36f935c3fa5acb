"""What the demonstration makes of a folder: any usual COCO layout, or one annotation file alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from d2det.data.synthetic import write_dataset
from d2det.inference.decode import DecodeError, read_image
from d2det_platform.demo.data import DemoData, of_folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for split, count in (("train", 10), ("val", 3)):
        write_dataset(folder, split=split, num_images=count, size=(96, 128))
    return folder


def coco(scenes: Path, to: Path) -> None:
    shutil.copytree(scenes, to)


def one_folder_of_images(scenes: Path, to: Path) -> None:
    """images/ for both parts, and the annotation files beside it."""
    (to / "images").mkdir(parents=True)
    for split in ("train", "val"):
        content = json.loads((scenes / f"annotations/instances_{split}.json").read_text())
        for image in content["images"]:
            name = f"{split}_{image['file_name']}"
            shutil.copy(scenes / split / image["file_name"], to / "images" / name)
            image["file_name"] = name
        (to / f"instances_{split}.json").write_text(json.dumps(content))


def roboflow(scenes: Path, to: Path) -> None:
    """A folder for each part, with pictures and annotations together."""
    for split, name in (("train", "train"), ("val", "valid")):
        shutil.copytree(scenes / split, to / name)
        shutil.copy(
            scenes / f"annotations/instances_{split}.json", to / name / "_annotations.coco.json"
        )


def single(scenes: Path, to: Path) -> None:
    """One annotation file alone, of the ten pictures of the training part."""
    shutil.copytree(scenes / "train", to / "pictures")
    shutil.copy(scenes / "annotations/instances_train.json", to / "result.json")


@pytest.mark.parametrize("layout", [coco, one_folder_of_images, roboflow, single])
def test_a_usual_layout_is_understood(layout, scenes: Path, tmp_path: Path) -> None:
    layout(scenes, tmp_path / "mine")
    data = of_folder(tmp_path / "mine", tmp_path / "out")
    seen: list[set[str]] = []
    for split in (data.train, data.val):
        names = [image["file_name"] for image in split.content()["images"]]
        assert all((split.images / name).is_file() for name in names)
        seen.append({str(split.images / name) for name in names})
    assert not seen[0] & seen[1]
    assert [len(each) for each in seen] == ([8, 2] if layout is single else [10, 3])
    ids = {image["id"] for image in data.val.content()["images"]}
    assert {row["image_id"] for row in data.val.content()["annotations"]} <= ids


def test_a_folder_named_after_training_does_not_confuse(scenes: Path, tmp_path: Path) -> None:
    """The path above the folder does not count."""
    coco(scenes, tmp_path / "train" / "mine")
    data = of_folder(tmp_path / "train" / "mine", tmp_path / "out")
    assert data.val.annotations.name == "instances_val.json"


def test_the_lake_has_sound_pictures_a_large_scene_and_a_damaged_file(
    scenes: Path, tmp_path: Path
) -> None:
    data = of_folder(scenes, tmp_path / "out")
    assert len(list((data.lake / "flight-1").iterdir())) == 3
    assert read_image(data.lake / "scene.tif").shape == (3 * 96, 4 * 128, 3)
    with pytest.raises(DecodeError):
        read_image(data.lake / "damaged.jpg")
    before = {path: path.stat().st_mtime_ns for path in data.lake.rglob("*")}
    assert isinstance(of_folder(scenes, tmp_path / "out"), DemoData)
    assert {path: path.stat().st_mtime_ns for path in data.lake.rglob("*")} == before


def test_what_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no COCO annotations"):
        of_folder(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "empty" / "train.json").write_text(
        json.dumps(
            {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": []}
        )
    )
    with pytest.raises(ValueError, match=r"no folder below it holds a\.jpg"):
        of_folder(tmp_path / "empty", tmp_path / "out")
