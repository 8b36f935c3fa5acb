"""The container file, which this suite cannot build: what it must hold, and must not."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.deploy.manifests import ROOT
from tests.deploy.test_rules import pinned

FILE = ROOT / "deploy" / "container" / "Dockerfile"
TEXT = FILE.read_text()
IGNORE = (FILE.parent / "Dockerfile.dockerignore").read_text()


def instructions() -> list[tuple[str, str]]:
    """Instructions with their arguments, continued lines joined, comments left out."""
    lines = "\n".join(line for line in TEXT.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n", " ", lines)
    found = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(word.upper(), " ".join(rest).strip()) for word, *rest in found]


def stages() -> list[list[tuple[str, str]]]:
    """Instructions by stage; what comes before the first FROM is the first part."""
    parts: list[list[tuple[str, str]]] = [[]]
    for word, rest in instructions():
        if word == "FROM":
            parts.append([])
        parts[-1].append((word, rest))
    return parts


LAST = stages()[-1]


def arguments(stage: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for name, rest in stage if name == word]


def test_base_images_are_pinned_by_version() -> None:
    defaults = dict(rest.split("=", 1) for rest in arguments(stages()[0], "ARG"))
    own = {stage[0][1].split(" AS ")[-1] for stage in stages()[1:]}
    for stage in stages()[1:]:
        image = re.sub(r"\$\{(\w+)\}", lambda m: defaults[m[1]], stage[0][1].split(" AS ")[0])
        assert image in own or pinned_base(image), image


def pinned_base(image: str) -> bool:
    return pinned(image) or bool(re.search(r":\d+\.\d+\.\d+-", image))


def test_both_variants_are_there() -> None:
    names = {stage[0][1].split(" AS ")[-1] for stage in stages()[1:]}
    assert {"build-cuda", "build-cpu", "wheel", "environment", "runtime"} <= names


def test_the_last_stage_runs_without_root_and_without_build_tools() -> None:
    assert arguments(LAST, "USER")[-1] == "1000:1000"
    place = [word for word, _ in LAST].index("USER")
    assert not any(word in ("COPY", "ADD") for word, _ in LAST[place:])
    text = " ".join(rest for _, rest in LAST)
    assert not re.search(r"\b(g\+\+|gcc|nvcc|build-essential|git|curl|sudo)\b", text)
    assert "useradd --uid 1000" in text


def test_the_ops_are_built_for_the_gpus_that_setup_knows() -> None:
    """The list in the file is that of setup.py, with PTX for later ones."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    (known,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "ALL_ARCHES"
    ]
    (listed,) = re.findall(r'TORCH_CUDA_ARCH_LIST="([^"]+)"', TEXT)
    assert tuple(listed.removesuffix("+PTX").split(";")) == known
    assert listed.endswith("+PTX")


def test_versions_come_from_the_constraints() -> None:
    for _, rest in instructions():
        for call in re.findall(r"pip install[^&]*", rest):
            assert "-c constraints.txt" in call or "-c /tmp/constraints.txt" in call


def test_token_authentication_is_on_and_no_secret_is_baked_in() -> None:
    environment = " ".join(arguments(LAST, "ENV"))
    assert "RAY_AUTH_MODE=token" in environment
    assert "RAY_USAGE_STATS_ENABLED=0" in environment
    assert not re.search(r"(TOKEN|PASSWORD|SECRET|KEY)\w*=\S", TEXT)


def test_nothing_is_fetched_by_address() -> None:
    """What is installed comes from the package index and the distribution, by name."""
    assert not re.search(r"\b(ADD|curl|wget)\s+\S*https?:", TEXT)
    assert "https://" not in TEXT


def test_package_lists_are_removed_in_the_layer_that_made_them() -> None:
    for _, rest in instructions():
        if "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists/*" in rest


def test_only_what_is_copied_travels_to_the_builder() -> None:
    lines = IGNORE.splitlines()
    assert lines[1] == "*"
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    sources = {
        Path(source).parts[0]
        for stage in stages()
        for rest in arguments(stage, "COPY")
        if "--from" not in rest
        for source in rest.split()[:-1]
    }
    assert sources == allowed
    assert all((ROOT / name).exists() for name in allowed)


@pytest.mark.parametrize("name", ["train_coco.py", "label_images.py", "serve.py"])
def test_jobs_of_the_manifests_are_in_the_image(name: str) -> None:
    assert (ROOT / "jobs" / name).exists()
    assert "COPY jobs /opt/d2det/jobs" in TEXT
