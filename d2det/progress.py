"""Progress of long work on a terminal, with pictures a second and the time left."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    """Pictures a second so far."""

    def render(self, task: Task) -> Text:
        """Returns the rate, or nothing before the first picture."""
        rate = task.finished_speed or task.speed
        return Text(f"{rate:.2f} images/s" if rate else "", style="progress.data.speed")


def image_progress() -> Progress:
    """Returns a progress bar on stderr; where that is no terminal, it shows nothing."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
