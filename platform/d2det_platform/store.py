"""Files of one run under a local folder or any fsspec URL, written whole or not at all.

Locally a file is written under a temporary name, fsynced, renamed, and its folder fsynced. An
object store's PUT is atomic already. In both cases a reader sees the old content or the new.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import fsspec

logger = logging.getLogger(__name__)

REMOTE_ATTEMPTS = 6
"""Tries of a remote call: with the back-off below they span about half a minute."""
FIRST_BACKOFF_S = 0.5

T = TypeVar("T")


class RunStore:
    """Named byte strings below `url`; names are relative, with forward slashes."""

    def __init__(self, url: str) -> None:
        self.filesystem, self.root = fsspec.core.url_to_fs(url)
        self.is_local = "file" in _protocols(self.filesystem)
        self.url = url

    def path(self, name: str = "") -> str:
        """Returns the full path of `name` in the store's file system."""
        return f"{self.root}/{name}" if name else str(self.root)

    def write(self, name: str, data: bytes) -> None:
        """Replaces `name` by `data` atomically and durably."""
        if self.is_local:
            _write_durably(Path(self.path(name)), data)
        else:
            _retried(f"write {name}", lambda: self.filesystem.pipe_file(self.path(name), data))

    def read(self, name: str) -> bytes:
        """Returns the content of `name`.

        Raises:
            FileNotFoundError: there is no such file.
        """

        def call() -> bytes:
            # Listings of object stores are cached by fsspec; another process may have written.
            self.filesystem.invalidate_cache()
            return bytes(self.filesystem.cat_file(self.path(name)))

        return call() if self.is_local else _retried(f"read {name}", call)

    def names(self, folder: str) -> list[str]:
        """Returns the names of the entries of `folder`, sorted; none if it does not exist."""

        def call() -> list[str]:
            self.filesystem.invalidate_cache()
            try:
                entries = self.filesystem.ls(self.path(folder), detail=False)
            except FileNotFoundError:
                return []
            return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)

        return call() if self.is_local else _retried(f"list {folder}", call)

    def remove(self, folder: str) -> None:
        """Removes `folder` and everything below it, if it is there."""

        def call() -> None:
            try:
                self.filesystem.rm(self.path(folder), recursive=True)
            except FileNotFoundError:
                return

        return call() if self.is_local else _retried(f"remove {folder}", call)


def _write_durably(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


def _retried(what: str, call: Callable[[], T]) -> T:
    """Runs a remote call again on transient errors, with exponential back-off and jitter."""
    for attempt in range(1, REMOTE_ATTEMPTS + 1):
        try:
            return call()
        except (FileNotFoundError, PermissionError):
            raise
        except OSError as error:
            if attempt == REMOTE_ATTEMPTS:
                raise
            pause = FIRST_BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
            logger.warning("%s failed (%s); attempt %d in %.1f s", what, error, attempt + 1, pause)
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _protocols(filesystem: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
