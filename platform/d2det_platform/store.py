"""Files of one run under a local folder or any fsspec URL, written whole or not at all.

Locally a file is written under a temporary name, fsynced, renamed, and its folder fsynced. An
object store's PUT is atomic already. In both cases a reader sees the old content or the new.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec

from d2det_platform.retries import Backoff, repeated

BACKOFF = Backoff(attempts=12, first_s=0.5, longest_s=8.0)
"""Of an operation, which is up to three requests. Where one request of ten fails, one operation of
five million fails for good; where all fail, the pauses add up to a minute."""
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 10
"""Of one call; reading waits so long for the next bytes, not for all."""

T = TypeVar("T")


def remote_options(scheme: str) -> dict[str, Any]:
    """Returns options by which a stalled call of a store fails in seconds rather than minutes."""
    if scheme in ("s3", "s3a"):
        timeouts = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S}
        return {"config_kwargs": {**timeouts, "retries": {"total_max_attempts": 1}}}
    return {}


def repeat_here(filesystem: fsspec.AbstractFileSystem) -> None:
    """Lets a file system try each call once: repeating, with pauses, is the caller's business.

    s3fs would repeat five times what botocore has repeated five times at a minute each.
    """
    if hasattr(filesystem, "retries"):
        filesystem.retries = 1


class RunStore:
    """Named byte strings below `url`; names are relative, with forward slashes."""

    def __init__(self, url: str) -> None:
        options = remote_options(url.partition("://")[0])
        self.filesystem, self.root = fsspec.core.url_to_fs(url, **options)
        repeat_here(self.filesystem)
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

    def create(self, name: str, data: bytes) -> bool:
        """Writes `name` as `write` does unless it is there, and returns whether it was written.

        Of several at once one writes, locally and on stores that put conditionally; on others the
        last of those that found nothing.
        """
        if self.is_local:
            return _create_durably(Path(self.path(name)), data)
        if self.exists(name):
            return False
        try:
            self.filesystem.pipe_file(self.path(name), data, mode="create")
        except FileExistsError:
            return False
        except Exception:  # the store cannot put conditionally, or the call failed
            if self.exists(name):
                return False
            self.write(name, data)
        return True

    def exists(self, name: str) -> bool:
        """Returns whether there is a file `name`."""

        def call() -> bool:
            self.filesystem.invalidate_cache()
            try:
                self.filesystem.info(self.path(name))
            except FileNotFoundError:
                return False
            return True

        if self.is_local:
            return Path(self.path(name)).exists()
        return _retried(f"look for {name}", call)

    def upload(self, name: str, source: Path) -> None:
        """Replaces `name` by the content of a local file, atomically, whatever its size."""
        if self.is_local:
            _copy_durably(source, Path(self.path(name)))
        else:
            _retried(
                f"write {name}", lambda: self.filesystem.put_file(str(source), self.path(name))
            )

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

    @contextlib.contextmanager
    def local_file(self, name: str) -> Iterator[Path]:
        """Yields the path of a local file with the content of `name`: the file itself, or a copy
        that is gone afterwards. Memory does not grow with its size."""
        if self.is_local:
            yield Path(self.path(name))
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / Path(name).name
            self.filesystem.invalidate_cache()
            _retried(f"read {name}", lambda: self.filesystem.get_file(self.path(name), str(copy)))
            yield copy

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


def arrow_filesystem(url: str) -> tuple[Any, str]:
    """Returns the pyarrow file system of `url` (None where pyarrow's own does) and its path there.

    For libraries that take pyarrow's: they reach what `RunStore` reaches, but do not repeat calls
    as it does, so the file system repeats them itself.
    """
    filesystem, root = fsspec.core.url_to_fs(url)
    if "file" in _protocols(filesystem):
        return None, str(Path(root).resolve())
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(filesystem)), root


@contextlib.contextmanager
def local_copy(place: str) -> Iterator[str]:
    """Yields the path of a local file with the content of `place`, a path or an fsspec URL."""
    if "://" not in place:
        yield place
        return
    folder, _, name = place.rpartition("/")
    with RunStore(folder).local_file(name) as path:
        yield str(path)


def _write_durably(path: Path, data: bytes) -> None:
    with _temporary(path) as temporary:
        _fill(temporary, io.BytesIO(data))
        temporary.replace(path)
    _sync_folder(path.parent)


def _create_durably(path: Path, data: bytes) -> bool:
    with _temporary(path) as temporary:
        _fill(temporary, io.BytesIO(data))
        try:
            path.hardlink_to(temporary)  # unlike a rename it does not replace
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            if path.exists():
                return False
            temporary.replace(path)
    _sync_folder(path.parent)
    return True


def _copy_durably(source: Path, path: Path) -> None:
    with _temporary(path) as temporary, source.open("rb") as file:
        _fill(temporary, file)
        temporary.replace(path)
    _sync_folder(path.parent)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name beside `path`, of this process and thread; nothing is left there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f"{os.getpid()}-{threading.get_ident()}"
    temporary = path.with_name(f".{path.name}.{own}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _fill(path: Path, source: IO[bytes]) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


def _retried(what: str, call: Callable[[], T]) -> T:
    return repeated(what, call, BACKOFF)


def _protocols(filesystem: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
