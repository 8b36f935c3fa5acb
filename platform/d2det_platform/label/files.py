"""Reading picture files wherever they lie: what they are, their first bytes, all their bytes.

Remote calls are repeated on errors that pass, with growing pauses; what a store refuses for good
(no such file, no permission) is not.
"""

from __future__ import annotations

import io
import logging
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from d2det.inference.headers import DecodeError, ImageHeader, read_header
from d2det_platform.label import uris
from d2det_platform.retries import Backoff, ExhaustedError, repeated
from d2det_platform.store import remote_options, repeat_here

BACKOFF = Backoff(attempts=8, first_s=0.5, longest_s=4.0)
"""Of a remote call. Where one of ten fails, one of a hundred million fails for good; where all
fail, the pauses add up to 20 s."""
HEAD_BYTES = 64 << 10
"""Read of a remote file for its header, thumbnails included; more is where that is too little."""
_MORE_HEAD_BYTES = 4 << 20

T = TypeVar("T")


class StoreUnavailableError(OSError):
    """A store did not answer in all attempts: not the picture's fault, and it may come back."""


@dataclass(frozen=True)
class FileState:
    """What is known of a file without reading it.

    num_bytes: its size.  version: changes when the content does, as far as the store can tell.
    """

    num_bytes: int
    version: str


def file_state(uri: str) -> FileState:
    """Returns the state of the file that holds a picture.

    Raises:
        DecodeError: io_error: there is no such file, or it is none that can be read.
        StoreUnavailableError: the store does not answer.
    """
    if uris.is_local(uri):
        return _local_state(uris.to_path(uri))
    filesystem, path = filesystem_of(uri)
    info = _reached(lambda: filesystem.info(path), uri)
    if info.get("type") == "directory":
        raise DecodeError("io_error", "not a regular file")
    version = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("mtime")
    return FileState(int(info.get("size") or 0), str(version or ""))


def read_file(uri: str, *, state: FileState | None = None, max_bytes: int | None = None) -> bytes:
    """Returns the bytes of a file.

    Args:
        uri: of the file.
        state: what it was; another state now is an io_error, so that no row mixes two versions.
        max_bytes: more is refused as too_large, before it is read.

    Raises:
        DecodeError: io_error or too_large.
        StoreUnavailableError: the store does not answer.
    """
    now = file_state(uri)
    if state is not None:
        check_unchanged(state, now)
    if max_bytes is not None and now.num_bytes > max_bytes:
        raise DecodeError("too_large", f"{now.num_bytes} bytes, the limit is {max_bytes}")
    if uris.is_local(uri):
        try:
            return Path(uris.to_path(uri)).read_bytes()
        except OSError as error:
            raise DecodeError("io_error", error.strerror or str(error)) from error
    filesystem, path = filesystem_of(uri)
    data = _reached(lambda: _whole(filesystem, path, now.num_bytes), uri)
    return bytes(data)


def check_unchanged(then: FileState, now: FileState) -> None:
    """Raises DecodeError where a file is not what it was when the work was planned."""
    if then != now:
        raise DecodeError("io_error", "changed since it was planned")


def read_file_header(uri: str, num_bytes: int) -> ImageHeader:
    """Returns what the picture in a file says of itself, from its first bytes.

    Raises:
        DecodeError: with the reason.
        StoreUnavailableError: the store does not answer.
    """
    if uris.is_local(uri):
        try:
            with Path(uris.to_path(uri)).open("rb") as file:
                return read_header(file)
        except OSError as error:
            raise DecodeError("io_error", error.strerror or str(error)) from error
    filesystem, path = filesystem_of(uri)
    for count in (HEAD_BYTES, _MORE_HEAD_BYTES):
        end = min(count, num_bytes)
        head = _reached(partial(filesystem.cat_file, path, start=0, end=end), uri)
        try:
            return read_header(io.BytesIO(bytes(head)))
        except DecodeError as error:
            if error.reason not in ("truncated", "corrupt") or end >= num_bytes:
                raise
    return read_header(io.BytesIO(read_file(uri)))


def filesystem_of(uri: str) -> tuple[Any, str]:
    """Returns fsspec's file system for a URI, and the path in it."""
    location = uris.to_location(uri)
    scheme = location.partition("://")[0] if uris.is_url(location) else "file"
    filesystem = fsspec.filesystem(scheme, **remote_options(scheme))
    repeat_here(filesystem)
    return filesystem, str(filesystem._strip_protocol(location))


def reached(call: Callable[[], T], what: str) -> T:
    """Returns what a remote call returns, tried again on errors that pass.

    Raises:
        FileNotFoundError, PermissionError: as the store says.
        StoreUnavailableError: the store does not answer.
    """
    try:
        return repeated(what, call, BACKOFF, log_level=logging.DEBUG)  # a lake has many pictures
    except ExhaustedError as error:
        raise StoreUnavailableError(f"{what} cannot be reached ({error.reason})") from error


def _local_state(path: str) -> FileState:
    try:
        status = os.stat(path)  # noqa: PTH116 - names of odd bytes
    except (OSError, ValueError) as error:
        raise DecodeError("io_error", getattr(error, "strerror", None) or str(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("io_error", "not a regular file")
    return FileState(status.st_size, str(status.st_mtime_ns))


def _whole(filesystem: Any, path: str, num_bytes: int) -> bytes:
    data = bytes(filesystem.cat_file(path))
    if len(data) != num_bytes:  # an answer cut short, which not every client notices
        raise OSError(f"{len(data)} of {num_bytes} bytes came")
    return data


def _reached(call: Callable[[], T], uri: str) -> T:
    """What a remote call about a picture returns."""
    try:
        return reached(call, uri)
    except FileNotFoundError as error:
        raise DecodeError("io_error", "no such file") from error
    except PermissionError as error:
        raise DecodeError("io_error", f"permission denied: {error}") from error
