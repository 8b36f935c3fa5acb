"""Which pictures are meant, and reading them ahead of the network."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from d2det.inference.decode import DecodeError, DecodeLimits, read_image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"})
"""Files that count as pictures in a folder; files named directly are tried whatever their name."""
JPEG2000_SUFFIXES = frozenset({".jp2", ".j2k"})


@dataclass(frozen=True)
class Source:
    """A picture file.

    name: in the results: relative to the folder where a folder alone was given, else as given.
    place: path below an output folder, relative to the folder that all pictures share.
    """

    path: Path
    name: str
    place: Path


@dataclass(frozen=True)
class ReadPicture:
    """What reading a source gave: its pixels, (H, W, 3) uint8 RGB, or why there are none."""

    source: Source
    content: NDArray[np.uint8] | DecodeError


def find_pictures(inputs: Sequence[Path], *, jpeg2000: bool = False) -> list[Source]:
    """Returns the pictures meant by files, folders (searched to their depths) and glob patterns.

    Each once, in the order of `inputs`, folders and patterns sorted by name.

    Raises:
        ValueError: One of `inputs` names nothing.
    """
    suffixes = SUFFIXES | JPEG2000_SUFFIXES if jpeg2000 else SUFFIXES
    paths = list(dict.fromkeys(path for each in inputs for path in _expand(each, suffixes)))
    if not paths:
        return []
    if len(inputs) == 1 and inputs[0].is_dir():
        return [_source(path, inputs[0], path.relative_to(inputs[0])) for path in paths]
    shared = Path(os.path.commonpath([_absolute(path).parent for path in paths]))
    return [_source(path, shared, path) for path in paths]


def _source(path: Path, root: Path, name: Path) -> Source:
    place = _absolute(path).relative_to(_absolute(root))
    return Source(path, _printable(name.as_posix()), Path(_printable(str(place))))


def _absolute(path: Path) -> Path:
    """The path without "..", by which a place could leave its output folder."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps ".."


def _expand(given: Path, suffixes: frozenset[str]) -> list[Path]:
    if given.is_dir():
        inside = (p for p in given.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
        return sorted(p for p in inside if not p.name.startswith("."))
    if given.exists():
        return [given]
    if glob.has_magic(str(given)):
        # Not Path.glob, which takes no absolute patterns.
        matches = [Path(name) for name in sorted(glob.glob(str(given), recursive=True))]  # noqa: PTH207
        if matches:
            return [p for p in matches if p.is_file()]
        raise ValueError(f"no file matches {given}")
    raise ValueError(f"{given} does not exist")


def _printable(name: str) -> str:
    """The name in valid UTF-8: bytes that are none appear as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_ahead(
    sources: Sequence[Source], limits: DecodeLimits, *, threads: int = 2, ahead: int = 8
) -> Iterator[ReadPicture]:
    """Yields what is in each source, in order; `threads` keep up to `ahead` of them decoded."""
    pending: deque[tuple[Source, Future[NDArray[np.uint8] | DecodeError]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for source in sources:
                if len(pending) >= ahead:
                    yield _finished(pending)
                pending.append((source, pool.submit(_read, source.path, limits)))
            while pending:
                yield _finished(pending)
        finally:
            pool.shutdown(cancel_futures=True)


def _finished(
    pending: deque[tuple[Source, Future[NDArray[np.uint8] | DecodeError]]],
) -> ReadPicture:
    source, future = pending.popleft()
    return ReadPicture(source, future.result())


def _read(path: Path, limits: DecodeLimits) -> NDArray[np.uint8] | DecodeError:
    try:
        return read_image(path, limits)
    except DecodeError as error:
        return error
