"""Steps of the demonstration: each says what it does, how long it takes, and what was typed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console

_RULE_WIDTH = 100


class Story:
    """Numbers the steps of a demonstration and tells what each one took."""

    def __init__(self, num_steps: int) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._count, self._num_steps = 0, num_steps
        self._started = time.monotonic()

    @contextmanager
    def step(self, title: str, *, expected: str) -> Iterator[None]:
        """Tells what comes, and afterwards what it took."""
        self._count += 1
        started = time.monotonic()
        head = f" {self._count}/{self._num_steps}  {title}  ({expected}) "
        self._console.print(f"\n[bold]{head:─<{_RULE_WIDTH}}[/bold]")
        yield
        self._console.print(f"[green]done in {_duration(time.monotonic() - started)}[/green]")

    def say(self, text: str) -> None:
        """Prints a line of the story."""
        self._console.print(text)

    def end(self, opened: Sequence[tuple[str, str]]) -> None:
        """Prints what there is to look at: rows of a path and what it shows."""
        took = _duration(time.monotonic() - self._started)
        self._console.print(f"\n[bold]All done in {took}. Open:[/bold]")
        width = max(len(path) for path, _ in opened)
        for path, shows in opened:
            self._console.print(f"  [cyan]{path:<{width}}[/cyan]  {shows}")


def verb(*args: object) -> list[str]:
    """Returns the command line of a verb of `d2det`, as this Python runs it."""
    return [sys.executable, "-m", "d2det_platform.cli", *map(str, args)]


def run(story: Story, *args: object, accepted: Sequence[int] = (0,)) -> None:
    """Runs a verb after printing what a person would type.

    Raises:
        RuntimeError: It ended with an exit code that is not among the `accepted`.
    """
    story.say("$ " + typed(args))
    sys.stdout.flush()
    code = subprocess.run(verb(*args), env=environment(), check=False).returncode
    if code not in accepted:
        raise RuntimeError(f"`{typed(args)}` ended with exit code {code}")


def typed(args: Sequence[object]) -> str:
    """Returns what a person would type for a verb."""
    return shlex.join(["d2det", *map(str, args)])


def environment() -> dict[str, str]:
    """Returns the environment of the steps: a cluster on this machine, and not too much talk.

    RAY_ADDRESS is left out: a demonstration must not land on a cluster of others.
    """
    quiet = {"RAY_DEDUP_LOGS": "1", "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | quiet


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
