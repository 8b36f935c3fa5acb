"""Building from source: without a compiler, and below a path with a space."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from d2det_ops import _library

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="the sources of the build are not here"
)

# Runs one op and the doctor, and tells which library was loaded.
_USE = """
import json
import torch
from d2det_ops import doctor, nms

boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [1.0, 0.0, 9.0, 9.0], [20.0, 0.0, 29.0, 9.0]])
kept = nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist()
kept = kept if nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist() == kept else None
report = doctor.report()
print(json.dumps({
    "kept": kept,
    "file": doctor.__file__,
    "backends": sorted({op.backend for op in report.ops if op.device == "cpu"}),
    "faults": [op.check for op in report.ops if op.check not in (None, "ok")],
}))
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of what a build needs, below a path with a space."""
    root = tmp_path / "My Projects" / "d2det"
    root.mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, root / name)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("ops", "d2det", "platform"):
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    return root


def build(root: Path, **variables: str) -> str:
    """Builds into ROOT/out and returns what the build said on stderr."""
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-lib", "out"]
    environment = os.environ | {"FORCE_CUDA": "0"} | variables
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def use(root: Path) -> tuple[dict[str, object], str]:
    """Returns the answers of `_USE` run on what was built, and what it said on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", _USE],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root / "out")},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout), done.stderr


def test_without_a_compiler_the_twins_are_installed_and_it_is_said_once(sources: Path) -> None:
    said = build(sources, CXX="/bin/false")
    assert said.count("***") == 2
    assert "/bin/false" in said
    assert "PyTorch twins" in said
    assert not list(sources.rglob("*.so"))
    answers, said = use(sources)
    assert str(answers["file"]).startswith(str(sources))
    assert answers["kept"] == [1, 2]
    assert answers["backends"] == ["PyTorch twin"]
    assert said.count("PyTorch twins") == 1


@pytest.mark.parametrize("compiler", ["", "no-such-compiler -O2", "/bin/false"])
def test_a_compiler_that_is_missing_or_broken_is_named(sources: Path, compiler: str) -> None:
    assert f"({compiler})" in build(sources, CXX=compiler)


@pytest.mark.slow
@pytest.mark.skipif(_library.CPU.error is not None, reason="there is no compiler here")
def test_ops_compile_and_load_below_a_path_with_a_space(sources: Path) -> None:
    assert "***" not in build(sources)
    answers, said = use(sources)
    assert str(answers["file"]).startswith(str(sources))
    assert answers["kept"] == [1, 2]
    assert answers["backends"] == ["compiled"]
    assert answers["faults"] == []
    assert "twins" not in said
