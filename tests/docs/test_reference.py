"""The reference is made from the programs, and says everything that they offer."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from d2det.presets import PRESETS
from d2det_platform.cli import VERBS, imported
from d2det_platform.usage import option_flags

ROOT = Path(__file__).resolve().parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return script("make_reference")


def test_every_option_of_every_verb_is_there(reference: ModuleType) -> None:
    page = reference.cli()
    for name, verb in VERBS.items():
        part = page.split(f"\n## d2det {name}\n")[1].split("\n## ")[0]
        for flag in option_flags(imported(verb.options)):
            assert f"`{flag}`" in part or f"{flag}.*\n" in part, f"{name} {flag}"


def test_every_preset_is_there_with_what_is_special_about_it(reference: ModuleType) -> None:
    page = reference.presets()
    assert all(f"## {name}\n" in page for name in PRESETS)
    part = page.split("## d2det_r101_dcn\n")[1].split("\n## ")[0]
    assert "| `model.backbone.kind` | `resnet101` |" in part
    assert "| `model.backbone.deformable` | `True` |" in part


def test_every_route_and_schema_is_there(reference: ModuleType) -> None:
    page, description = reference.http(), reference.openapi()
    assert len(description["paths"]) > 8
    for path, methods in description["paths"].items():
        assert any(f"## {method.upper()} {path}\n" in page for method in methods)
    assert all(f"### {name}\n" in page for name in description["components"]["schemas"])


def test_tables_are_whole(reference: ModuleType) -> None:
    """A stray | or line break in a text would tear a row apart."""
    for text in (reference.cli(), reference.presets(), reference.http()):
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len(rows) > 50
        for row in rows:
            assert row.replace("\\|", "").count("|") in (3, 4), row
            assert row.endswith("|")


def test_notices_name_every_dependency() -> None:
    notices, written = script("third_party"), (ROOT / "THIRD_PARTY_NOTICES.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirements in (project["dependencies"], *project["optional-dependencies"].values()):
        for name in notices.names(requirements):
            assert f"\n| {name} |" in written, f"run `make licences`: {name} is missing"
