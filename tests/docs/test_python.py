"""Python in the documentation: what can run here runs, and of the rest every name is there."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

from tests.docs.commands import PAGES

BLOCKS = [
    (path.name, code)
    for path in PAGES
    for code in re.findall(r"^```python\n(.*?)^```", path.read_text(), re.S | re.M)
]


@pytest.mark.parametrize(("page", "code"), BLOCKS, ids=[page for page, _ in BLOCKS])
def test_what_is_imported_is_there(page: str, code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_first_hours_scenes_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [code for page, code in BLOCKS if page == "first-hour.md"]
    monkeypatch.chdir(tmp_path)
    few = code.replace('("train", 40), ("val", 8)', '("train", 2), ("val", 1)')
    assert few != code
    exec(compile(few, "first-hour.md", "exec"), {})
    content = json.loads((tmp_path / "scenes/annotations/instances_train.json").read_text())
    assert len(content["images"]) == 2
    assert (tmp_path / "scenes/val/000001.jpg").exists()
