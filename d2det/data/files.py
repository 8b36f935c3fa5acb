"""Bytes of files in local folders and, with a URL such as s3://bucket/name, in object stores."""

from __future__ import annotations

import errno
from pathlib import Path

import fsspec


def join(root: Path | str, name: str) -> str:
    """Returns the place of `name` under `root`, both local or both remote."""
    return f"{str(root).rstrip('/')}/{name}" if is_remote(root) else str(Path(root) / name)


def is_remote(place: Path | str) -> bool:
    """Returns whether `place` is a URL."""
    return "://" in str(place)


def exists(place: Path | str) -> bool:
    """Returns whether there is a file or folder at `place`."""
    if is_remote(place):
        filesystem, path = fsspec.core.url_to_fs(str(place))
        return bool(filesystem.exists(path))
    try:
        return Path(place).exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def read_bytes(place: Path | str) -> bytes:
    """Returns the content of the file at `place`.

    Raises:
        OSError: it cannot be read.
    """
    if is_remote(place):
        filesystem, path = fsspec.core.url_to_fs(str(place))
        return bytes(filesystem.cat_file(path))
    return Path(place).read_bytes()
