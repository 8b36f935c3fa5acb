"""The command lines in the documentation, and the parsers that decide whether they make sense."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from d2det_platform import cli, usage
from d2det_platform.demo.run import DemoOptions

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(path for path in (ROOT / "docs").glob("*.md")),
)
MANIFESTS = (*sorted((ROOT / "deploy").rglob("*.yaml")), *sorted((ROOT / "deploy").rglob("*.yml")))
JOBS = {
    "jobs/train_coco.py": "train",
    "jobs/label_images.py": "label",
    "jobs/serve.py": "serve",
}
"""Entry points that are a verb."""
_MAKEFILE = (ROOT / "Makefile").read_text()
_STARTS = ("d2det ", "python jobs/", "make ", "ray job submit ", "python benchmarks/")
_ENVIRONMENT = re.compile(r"^(?:[A-Z_]+=\S+ )+")


@dataclass(frozen=True)
class Command:
    """A command line, and where it stands."""

    path: Path
    line: int
    text: str
    is_mention: bool = False
    """In a sentence or a cell, where what is required may be left out."""

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line} {self.text[:50]}"


def commands() -> list[Command]:
    """Returns the command lines of all pages, and those that manifests run or mention."""
    found = [each for page in PAGES for each in _of_page(page)]
    return found + [each for path in MANIFESTS for each in _of_manifest(path)]


def parse(text: str) -> str:
    """Returns what a command line runs, having parsed its options as that would.

    Raises:
        UsageError, ValueError: An option does not exist or has no such value.
        AssertionError: What it names is not there.
    """
    words = shlex.split(text, comments=True)
    for end in (">>", "|", "&&", ";"):
        words = words[: words.index(end)] if end in words else words
    if words[:3] == ["ray", "job", "submit"]:
        return parse(shlex.join(words[words.index("--") + 1 :]))
    if words[0] == "make":
        for target in (word for word in words[1:] if "=" not in word):
            assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.M), (
                target
            )
        return "make"
    if words[0] == "python":
        script = words[1].removeprefix("/opt/d2det/")
        assert (ROOT / script).is_file(), script
        if script == "jobs/demo.py":
            usage.parse(DemoOptions, words[2:], prog="demo")
        elif script in JOBS and len(words) > 2:
            _parse_verb(JOBS[script], words[2:])
        return script
    assert words[0] == "d2det", words
    if words[1].startswith("-"):
        assert words[1] in ("--help", "--version")
    elif words[1:2] != ["VERB"]:
        _parse_verb(words[1], words[2:])
    return words[1]


def look_up(text: str) -> None:
    """Checks that the verb, target or script of a mention, and the options it names, exist.

    Raises:
        AssertionError: One does not.
    """
    words = re.sub(r"[\[\]]", " ", text).split()
    if words[0] != "d2det":
        parse(" ".join(word for word in words[:2]))
        return
    if words[1] in ("VERB", "completion") or words[1].startswith("-"):
        return
    assert words[1] in cli.VERBS, words[1]
    flags = set(usage.option_flags(cli.imported(cli.VERBS[words[1]].options)))
    for word in words[2:]:
        assert not word.startswith("--") or word.split("=")[0] in flags | {"--help"}, word


def _parse_verb(name: str, arguments: list[str]) -> None:
    verb = cli.VERBS[name]
    if "--help" in arguments:
        return
    if verb.parse:
        parser = cli.imported(verb.parse)
        usage.explained(lambda: parser(arguments), arguments)
    else:
        usage.parse(cli.imported(verb.options), arguments, prog=name)


def _of_page(path: Path) -> Iterator[Command]:
    """Indented and fenced lines, joined where they end in a backslash; and `d2det ...` in cells."""
    lines = path.read_text().splitlines()
    number = 0
    while number < len(lines):
        start, line = number, lines[number]
        while line.endswith("\\") and number + 1 < len(lines):
            number += 1
            line = f"{line[:-1].rstrip()} {lines[number].strip()}"
        number += 1
        text = _ENVIRONMENT.sub("", line.strip())
        if lines[start].startswith("    ") and text.startswith(_STARTS):
            yield Command(path, start + 1, text)
        for inline in lines[start].split("`")[1::2]:
            if re.match(r"(d2det|make) \S|python jobs/", inline):
                yield Command(path, start + 1, inline, is_mention=True)


def _of_manifest(path: Path) -> Iterator[Command]:
    """Entry points of jobs, over several lines until the indentation ends."""
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.strip().startswith("python /opt/d2det/jobs/"):
            depth = len(line) - len(line.lstrip())
            rest = []
            for following in lines[number:]:
                if len(following) - len(following.lstrip()) < depth:
                    break
                rest.append(following.strip())
            yield Command(path, number + 1, " ".join(rest))
