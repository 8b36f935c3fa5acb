"""Pictures are found by file, folder and pattern, and read ahead in order."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from d2det.inference.decode import DecodeError
from d2det.inference.limits import DecodeLimits
from d2det.inference.sources import Source, find_pictures, read_ahead


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "deep/er/ü c.tif", "note.txt", "deep/x.jp2", ".hidden.jpg"):
        path = tmp_path / "lake" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((4, 6, 3), len(name), np.uint8)
        suffix = path.suffix.lower() if path.suffix not in (".txt", ".jp2") else ".png"
        path.write_bytes(cv2.imencode(suffix, pixels)[1].tobytes())
    return tmp_path / "lake"


def names(*inputs: Path, **options: bool) -> list[str]:
    return [source.name for source in find_pictures(inputs, **options)]


def test_a_folder_is_searched_to_its_depths_by_suffix(lake: Path) -> None:
    assert names(lake) == ["a.PNG", "b.jpg", "deep/er/ü c.tif"]
    assert "deep/x.jp2" in names(lake, jpeg2000=True)


def test_a_named_file_is_taken_whatever_its_suffix(lake: Path) -> None:
    assert names(lake / "note.txt") == [str(lake / "note.txt")]


def test_patterns_are_expanded_and_pictures_come_once(lake: Path) -> None:
    assert len(names(lake / "**" / "*.tif")) == 1
    assert names(lake / "b.jpg", lake / "*.jpg") == [str(lake / "b.jpg")]


def test_names_of_several_inputs_are_their_paths(lake: Path) -> None:
    assert names(lake / "deep", lake / "b.jpg") == [
        str(lake / "deep/er/ü c.tif"),
        str(lake / "b.jpg"),
    ]


def test_places_are_relative_to_the_folder_all_share(lake: Path) -> None:
    def places(*inputs: Path) -> list[str]:
        return [source.place.as_posix() for source in find_pictures(inputs)]

    assert places(lake / "deep") == ["er/ü c.tif"]
    assert places(lake / "b.jpg") == ["b.jpg"]
    assert places(lake / "deep", lake / "b.jpg") == ["deep/er/ü c.tif", "b.jpg"]
    assert places(lake / "deep" / ".." / "b.jpg", lake / "deep") == ["b.jpg", "deep/er/ü c.tif"]


@pytest.mark.parametrize("missing", ["nowhere", "no*thing.jpg"])
def test_what_names_nothing_is_refused(lake: Path, missing: str) -> None:
    with pytest.raises(ValueError, match=r"does not exist|no file matches"):
        names(lake / missing)


def test_an_empty_folder_holds_no_pictures(tmp_path: Path) -> None:
    assert names(tmp_path) == []


def test_undecodable_names_become_printable(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.jpg"))
    path.write_bytes(b"x")
    assert names(tmp_path) == ["a\\xff.jpg"]


@pytest.mark.parametrize("ahead", [1, 3, 100])
def test_pictures_and_errors_come_in_order(lake: Path, ahead: int) -> None:
    sources = find_pictures([lake])
    sources.insert(1, Source(lake / "gone.jpg", "gone", Path("gone")))
    read = list(read_ahead(sources, DecodeLimits(), threads=2, ahead=ahead))
    assert [picture.source for picture in read] == sources
    assert isinstance(read[1].content, DecodeError)
    assert read[1].content.reason == "io_error"
    assert [p.content.shape for i, p in enumerate(read) if i != 1] == [(4, 6, 3)] * 3


def test_reading_stops_when_nobody_listens(lake: Path) -> None:
    pictures = read_ahead(find_pictures([lake]) * 50, DecodeLimits(), ahead=2)
    next(pictures)
    pictures.close()
