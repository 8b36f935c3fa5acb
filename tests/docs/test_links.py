"""Links and file names in the documentation lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.docs.commands import PAGES, ROOT

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_CODE_PATH = re.compile(
    r"`((?:benchmarks|deploy|d2det|docs|jobs|ops|platform|tests)/[\w./*{},-]+)`"
)
ALL = (*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", ROOT / "THIRD_PARTY_NOTICES.md")


def slug(heading: str) -> str:
    """The anchor that Markdown gives a heading."""
    plain = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
    return re.sub(r"[\s]+", "-", plain)


def anchors(path: Path) -> set[str]:
    return {slug(line.lstrip("#")) for line in path.read_text().splitlines() if line[:1] == "#"}


@pytest.mark.parametrize("page", ALL, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://")
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if "reference" in Path(file).parts:
            continue  # made when the documentation is built, which checks them
        assert path.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(path), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", ALL, ids=lambda path: path.name)
def test_files_that_are_named_exist(page: Path) -> None:
    for name in _CODE_PATH.findall(page.read_text()):
        made = name.startswith(("benchmarks/results", "docs/reference"))
        for each in () if made else braces(name):
            assert list(ROOT.glob(each)), f"{page.name} names {each}"


def braces(name: str) -> list[str]:
    """a/{b,c}.d as a/b.d and a/c.d."""
    match = re.search(r"\{([^}]*)\}", name)
    if match is None:
        return [name.rstrip("/.")]
    return [
        each
        for choice in match[1].split(",")
        for each in braces(name[: match.start()] + choice + name[match.end() :])
    ]


def test_every_page_is_in_the_navigation() -> None:
    text = re.sub(r"!!python/name:\S+", "", (ROOT / "mkdocs.yml").read_text())

    def pages(part: object) -> list[str]:
        if isinstance(part, str):
            return [part]
        values = part.values() if isinstance(part, dict) else part
        return [page for value in values for page in pages(value)]  # type: ignore[attr-defined]

    listed = {page for page in pages(yaml.safe_load(text)["nav"]) if "reference/" not in page}
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")}
