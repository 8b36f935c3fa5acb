"""Inputs of every kind become the same stream of items, sorted and each picture once."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from d2det_platform.label.options import SourceOptions
from d2det_platform.label.sources import Distinct, Item, find_items, needs_distinct
from tests.platform.label.lakes import make_lake, picture


def names(*inputs: object, **more: object) -> list[str]:
    given = SourceOptions(inputs=tuple(map(str, inputs)), **more)
    return [item.name for item in find_items(given)]


def test_a_folder_is_searched_in_the_order_of_its_uris(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.jpg", "a.png", "a-b/c.tif", "c.txt", ".hidden.png", "a/Ä.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    items = list(find_items(SourceOptions(inputs=(str(tmp_path),))))
    assert [item.uri for item in items] == sorted(item.uri for item in items)
    assert {item.name for item in items} == {"b.png", "a/z.jpg", "a.png", "a-b/c.tif", "a/Ä.PNG"}


def test_odd_bytes_in_names_are_kept_apart(tmp_path: Path) -> None:
    odd = [b"\xff\xfe.png", b"\xff.png", "\u00e9.png".encode(), "e\u0301.png".encode(), b"a\nb.png"]
    for name in odd:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"x")
    items = list(find_items(SourceOptions(inputs=(str(tmp_path),))))
    assert len({item.uri for item in items}) == len(odd)
    json.dumps([item.name for item in items]).encode()  # names are valid text


def test_links_that_leave_the_folder_are_refused_unless_asked_for(tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "lake/out.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "lake/loop").symlink_to(tmp_path / "lake")
    (tmp_path / "lake/in.png").write_bytes(b"x")
    (tmp_path / "lake/same.png").symlink_to(tmp_path / "lake/in.png")
    items = {i.name: i.refusal for i in find_items(SourceOptions(inputs=(str(tmp_path / "lake"),)))}
    assert items.keys() == {"in.png", "out.png", "same.png"}
    assert "leaves" in items["out.png"]
    assert not items["in.png"]
    assert not items["same.png"]
    followed = list(find_items(SourceOptions(inputs=(str(tmp_path / "lake"),), follow_links=True)))
    assert {item.name for item in followed if not item.refusal} >= {"in.png", "out.png"}


def test_lists_take_paths_beside_them_and_anywhere(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"# pictures\na.png\n\n{tmp_path}/b c.png\ns3://b/k.png\n")
    items = list(find_items(SourceOptions(inputs=(str(tmp_path / "list.txt"),))))
    assert [item.uri for item in items] == [
        f"file://{tmp_path}/a.png",
        f"file://{tmp_path}/b%20c.png",
        "s3://b/k.png",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", "not a COCO annotation file"),
        ("[]", "list of image objects"),
        ('{"images": [{"id": 1}]}', "image 0: bad or missing 'file_name'"),
        ('{"images": [{"id": "a", "file_name": "a.jpg"}]}', "image 0: bad or missing 'id': 'a'"),
        ('{"images": [{"id": 1e400, "file_name": "a.jpg"}]}', "image 0: bad or missing 'id': inf"),
        (f'{{"images": [{{"id": {2**70}, "file_name": "a.jpg"}}]}}', "image 0: bad or missing"),
        ("[" * 100_000, "nested too deeply"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_coco_files_that_cannot_be_read_are_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "instances.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        names(path, image_root=str(tmp_path))


def test_coco_files_give_their_ids_and_names(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "x/a.png"}, {"id": 3, "file_name": "b.png"}]
    (tmp_path / "a.json").write_text(json.dumps({"images": images}))
    given = SourceOptions(inputs=(str(tmp_path / "a.json"),), image_root="/lake")
    assert list(find_items(given)) == [
        Item("file:///lake/b.png", "b.png", 3),
        Item("file:///lake/x/a.png", "x/a.png", 7),
    ]


def test_tables_hold_paths_or_the_pictures_themselves(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": ["a.png", "/x/b.png"]}), tmp_path / "paths.parquet")
    pq.write_table(pa.table({"png": [picture(0), picture(1)]}), tmp_path / "bytes.parquet")
    paths = SourceOptions(inputs=(str(tmp_path / "paths.parquet"),))
    assert [i.uri for i in find_items(paths)] == [f"file://{tmp_path}/a.png", "file:///x/b.png"]
    rows = SourceOptions(inputs=(str(tmp_path / "bytes.parquet"),), image_column="png")
    assert [i.uri for i in find_items(rows)] == [
        f"file://{tmp_path}/bytes.parquet#row={row}" for row in (0, 1)
    ]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("nowhere",), "does not exist"),
        (("nowhere/*.png",), "no file matches"),
        (("a.json",), "--image-root"),
        (("a.parquet",), "image_column|--image-column|cannot be read"),
    ],
    ids=["folder", "pattern", "coco without root", "table that is missing"],
)
def test_what_does_not_exist_is_said(
    given: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=says):
        list(find_items(SourceOptions(inputs=given)))


def test_repeated_items_are_found_whatever_names_them(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "lake", 6)
    inputs = (str(lake), str(lake / "1"))
    assert needs_distinct(inputs)
    assert not needs_distinct(inputs[:1])
    distinct = Distinct()
    items = list(find_items(SourceOptions(inputs=inputs)))
    for item in items:
        distinct.add(item)
    again = distinct.repeated()
    assert len(items) - len(again) == 6
    assert {items[i].uri for i in again} == {i.uri for i in items[6:]}
