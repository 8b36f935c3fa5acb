"""Places that a person names and every process of the job must find: paths and URLs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator


def absolute(place: str) -> str:
    """Returns a path made absolute, where the person stands; a URL, or nothing, as it is.

    Workers stand elsewhere: Ray Train moves each to a folder of the run, and those of a cluster
    that runs already were started where it was.
    """
    return place if not place or "://" in place else str(Path(place).absolute())


Place = Annotated[str, AfterValidator(absolute)]
"""An option that names a file or a folder, as a path or an fsspec URL."""

LocalPath = Annotated[Path, AfterValidator(Path.absolute)]
"""An option that names a file or a folder of this machine."""
