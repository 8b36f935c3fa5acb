"""The identity of a picture: its full URI, in ASCII, from which every byte of its name comes back.

`file:///lake/a%20b.jpg` is a file, `s3://bucket/key` an object, `...parquet#row=17` a row of a
table. Base names never identify anything: two folders may hold the same one.
"""

from __future__ import annotations

import os
import re
from urllib.parse import quote, unquote_to_bytes

_SAFE = "/-_.~!$&'()*+,;=:@"
"""Characters that stand for themselves; % never does, so the encoding can be undone."""
_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*://")
_ROW = "#row="


def of_path(path: str | bytes | os.PathLike[str]) -> str:
    """Returns the URI of a local path, made absolute; links are not resolved."""
    absolute = os.path.abspath(os.fsencode(path))  # noqa: PTH100 - bytes, and keeps no ".."
    return f"file://{quote(absolute, safe=_SAFE)}"


def of_location(location: str) -> str:
    """Returns the URI of a path or URL that a person or a list names.

    Keys of object stores are encoded as paths are; http URLs are URIs already.
    """
    if not is_url(location):
        return of_path(location)
    scheme, _, rest = location.partition("://")
    if scheme == "file":
        return of_path(unquote_to_bytes(rest))
    if scheme in ("http", "https"):
        return location
    return f"{scheme}://{quote(os.fsencode(rest), safe=_SAFE)}"


def is_url(location: str) -> bool:
    """Returns whether a location names its scheme; `C:/x` and `a:b` do not."""
    return _SCHEME.match(location) is not None


def is_local(uri: str) -> bool:
    """Returns whether the picture lies in a file of this machine's file systems."""
    return uri.startswith("file://")


def to_path(uri: str) -> str:
    """Returns the local path of a file URI, odd bytes as Python's file functions take them."""
    return os.fsdecode(unquote_to_bytes(split_row(uri)[0].removeprefix("file://")))


def to_location(uri: str) -> str:
    """Returns what fsspec opens: a path, or a URL with its key in plain text."""
    uri = split_row(uri)[0]
    if is_local(uri):
        return to_path(uri)
    scheme, _, rest = uri.partition("://")
    if scheme in ("http", "https"):
        return uri
    return f"{scheme}://{os.fsdecode(unquote_to_bytes(rest))}"


def with_row(uri: str, row: int) -> str:
    """Returns the URI of the picture in row `row` of a table; # is encoded in paths, so unique."""
    return f"{uri}{_ROW}{row}"


def split_row(uri: str) -> tuple[str, int | None]:
    """Returns the URI of the file, and the row where the picture is one of a table's."""
    base, mark, row = uri.rpartition(_ROW)
    return (base, int(row)) if mark and row.isdigit() else (uri, None)
