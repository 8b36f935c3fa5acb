from pathlib import Path

import pytest

from d2det_platform.places import absolute


def test_paths_start_where_the_person_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("w.safetensors") == str(tmp_path / "w.safetensors")
    assert absolute("lake/") == str(tmp_path / "lake")


@pytest.mark.parametrize("place", ["/data/val", "s3://lake/val", "file:///data", ""])
def test_full_paths_and_urls_stay(place: str) -> None:
    assert absolute(place) == place
