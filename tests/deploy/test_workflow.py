"""The workflow on GitHub: few rights, pinned actions, and commands that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import ROOT

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
STEPS = [
    (path, name, step)
    for path in FILES
    for name, job in yaml.safe_load(path.read_text())["jobs"].items()
    for step in job["steps"]
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_may_only_read(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert content["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in content["jobs"].values())
    assert all(0 < job["timeout-minutes"] <= 60 for job in content["jobs"].values())
    assert "pull_request_target" not in str(content)


@pytest.mark.parametrize(("path", "job", "step"), STEPS)
def test_actions_are_pinned_by_commit(path: Path, job: str, step: dict[str, Any]) -> None:
    if "uses" in step:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step["uses"])
        assert re.search(re.escape(step["uses"]) + r" # v\d+\.\d+\.\d+$", path.read_text(), re.M)
    if step.get("uses", "").startswith("actions/checkout@"):
        assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize(("path", "job", "step"), STEPS)
def test_what_a_step_runs_is_a_target_of_the_makefile(
    path: Path, job: str, step: dict[str, Any]
) -> None:
    if "run" in step:
        assert "${{" not in step["run"], "no text of others in a shell"
        (target,) = re.findall(r"^make ([\w-]+)", step["run"])
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_lint_tests_wheel_and_demo_are_run() -> None:
    commands = " ".join(step.get("run", "") for _, _, step in STEPS)
    assert {"lint", "test", "wheel", "demo", "docs"} <= set(re.findall(r"make ([\w-]+)", commands))
