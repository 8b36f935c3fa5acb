"""The start-up check that keeps workers with other ops out."""

import dataclasses
from pathlib import Path

import pytest

from d2det_ops._sources import csrc_digest
from d2det_ops.digest import BuildInfo, build_info, check_same_build


def test_the_same_build_is_accepted_even_with_another_torch_and_host() -> None:
    driver = dataclasses.replace(build_info(), host="head-node", torch="2.99")
    check_same_build(BuildInfo(**dataclasses.asdict(driver)))  # as it travels to the workers


@pytest.mark.parametrize("part", ["library", "python"])
def test_another_build_is_refused_with_one_line_naming_both_sides(part: str) -> None:
    here = build_info()
    driver = dataclasses.replace(
        here, host="head-node", version="9.9.9", **{part: "feedfeedfeedfeed"}
    )
    with pytest.raises(RuntimeError) as caught:
        check_same_build(driver)
    message = str(caught.value)
    assert "\n" not in message
    for named in ("head-node", "9.9.9", "feedfeedfeedfeed", here.host, here.version):
        assert named in message


def test_digest_changes_with_any_source_and_with_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "a.cpp").write_text("1")
    before = csrc_digest(tmp_path)
    (tmp_path / "notes.txt").write_text("not a source")
    assert csrc_digest(tmp_path) == before
    (tmp_path / "cpu" / "b.h").write_text("")
    after = csrc_digest(tmp_path)
    assert after != before
    (tmp_path / "cpu" / "a.cpp").write_text("2")
    assert csrc_digest(tmp_path) not in (before, after)
