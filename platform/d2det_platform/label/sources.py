"""Which pictures are meant: folders, patterns, lists, COCO files and tables to a stream of items.

The stream is sorted within a folder and never held whole, so a lake of any size fits. The order and
the names are functions of the inputs alone.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from d2det.data.rows import column, objects, parse_json, texts
from d2det.inference.sources import JPEG2000_SUFFIXES, SUFFIXES
from d2det_platform.label import uris
from d2det_platform.label.files import filesystem_of, reached, read_file
from d2det_platform.label.options import SourceOptions


@dataclass(frozen=True)
class Item:
    """A picture that an input names.

    uri: its identity.  name: as the input calls it, for people and for COCO's `file_name`.
    image_id: where the input gives it a number.  refusal: why it is not to be read, if so.
    """

    uri: str
    name: str
    image_id: int | None = None
    refusal: str = ""


def find_items(options: SourceOptions, *, jpeg2000: bool = False) -> Iterator[Item]:
    """Yields the pictures of all inputs in order; one named twice comes twice (see `Distinct`).

    Raises:
        ValueError: an input does not exist, or is not what its name says.
    """
    suffixes = SUFFIXES | JPEG2000_SUFFIXES if jpeg2000 else SUFFIXES
    for given in options.inputs:
        yield from _expand(given, options, suffixes)


def needs_distinct(inputs: Sequence[str]) -> bool:
    """Returns whether the inputs could name a picture twice: one folder alone cannot."""
    return len(inputs) > 1 or inputs[0].lower().endswith((".txt", ".json", ".parquet"))


class Distinct:
    """Remembers pictures by 16 bytes each, and tells which items of a stream repeat one."""

    def __init__(self) -> None:
        self._digests = bytearray()

    def add(self, item: Item) -> None:
        """Takes note of the next item."""
        self._digests += hashlib.blake2b(item.uri.encode(), digest_size=16).digest()

    def repeated(self) -> frozenset[int]:
        """Returns the places in the stream of items that came before."""
        keys = np.frombuffer(self._digests, dtype="S16")
        _, first = np.unique(keys, return_index=True)
        again = np.ones(len(keys), bool)
        again[first] = False
        return frozenset(np.flatnonzero(again).tolist())


def _expand(given: str, options: SourceOptions, suffixes: frozenset[str]) -> Iterator[Item]:
    lower = given.lower()
    if lower.endswith(".json"):
        yield from _coco(given, options)
    elif lower.endswith((".txt", ".lst")):
        yield from _listed(given, options)
    elif lower.endswith(".parquet"):
        yield from _table(given, options)
    elif uris.is_url(given) and not given.startswith("file://"):
        yield from _remote(given, suffixes)
    else:
        yield from _local(uris.to_path(uris.of_location(given)), given, options, suffixes)


def _local(
    path: str, given: str, options: SourceOptions, suffixes: frozenset[str]
) -> Iterator[Item]:
    if os.path.isdir(path):  # noqa: PTH112 - names of odd bytes, here and below
        root = uris.of_path(path).rstrip("/") + "/"
        yield from _walk(os.fsencode(path), root, options, suffixes)
    elif os.path.lexists(path):
        yield Item(uris.of_path(path), _printable(os.fsencode(given)))
    elif glob.has_magic(given):
        matches = sorted(glob.glob(given, recursive=True), key=os.fsencode)  # noqa: PTH207
        if not matches:
            raise ValueError(f"no file matches {given}")
        for match in matches:
            if not os.path.isdir(match):  # noqa: PTH112
                yield Item(uris.of_path(match), _printable(os.fsencode(match)))
    else:
        raise ValueError(f"{given} does not exist")


def _walk(
    root: bytes, root_uri: str, options: SourceOptions, suffixes: frozenset[str]
) -> Iterator[Item]:
    """Yields the pictures below a folder in the order of their URIs; memory holds a folder."""
    real_root = os.path.realpath(root)
    stack: list[list[tuple[str, os.DirEntry[bytes], bool]]] = [_entries(root, options)]
    seen = {real_root}  # of folders behind links, so that loops end
    while stack:
        if not stack[-1]:
            stack.pop()
            continue
        uri, entry, is_folder = stack[-1].pop()
        if is_folder:
            if options.follow_links:
                if (real := os.path.realpath(entry.path)) in seen:
                    continue
                seen.add(real)
            stack.append(_entries(entry.path, options))
        elif os.path.splitext(os.fsdecode(entry.name))[1].lower() in suffixes:  # noqa: PTH122
            refusal = ""
            if entry.is_symlink() and not options.follow_links:
                target = os.path.realpath(entry.path)
                if not target.startswith(real_root.rstrip(b"/") + b"/"):
                    refusal = "a link that leaves the folder; --follow-links reads it"
            yield Item(uri, _below(uri, root_uri), refusal=refusal)


def _entries(folder: bytes, options: SourceOptions) -> list[tuple[str, os.DirEntry[bytes], bool]]:
    """Entries of a folder, last first, as (URI, entry, whether to enter it).

    Folders sort with a slash behind, as their pictures do, so the whole walk is in order.
    """
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                is_folder = entry.is_dir(follow_symlinks=options.follow_links)
                found.append((uris.of_path(entry.path), entry, is_folder))
    except OSError as error:
        raise ValueError(f"{os.fsdecode(folder)} cannot be listed: {error.strerror}") from error
    return sorted(found, key=lambda each: each[0] + "/" * each[2], reverse=True)


def _remote(given: str, suffixes: frozenset[str]) -> Iterator[Item]:
    pattern = given.partition("://")[2] if glob.has_magic(given) else ""
    location = given if not pattern else given[: _first_magic(given)].rpartition("/")[0]
    uri = uris.of_location(location)
    if given.startswith(("http://", "https://")):
        yield Item(uri, given)
        return
    filesystem, path = filesystem_of(uri)
    scheme = given.partition("://")[0]
    found = False
    for key in _remote_walk(filesystem, path, suffixes):
        if pattern and not _matches(key, pattern):
            continue
        found = True
        one = uris.of_location(f"{scheme}://{key}")
        yield Item(one, given if key == path else _below(one, uri.rstrip("/") + "/"))
    if not found and pattern:
        raise ValueError(f"no object matches {given}")


def _remote_walk(filesystem: Any, path: str, suffixes: frozenset[str]) -> Iterator[str]:
    """Yields the pictures below a prefix, folder by folder, or the object of that name itself.

    Not fsspec's walk: it leaves out folders that fail to be listed, and says nothing.
    """
    pending = [path.rstrip("/")]
    while pending:
        folder = pending.pop()
        try:
            entries = reached(partial(filesystem.ls, folder, detail=True, refresh=True), folder)
        except FileNotFoundError:
            raise ValueError(f"nothing at {folder}") from None
        entries = sorted(entries, key=lambda entry: str(entry["name"]))
        inside = []
        for entry in entries:
            key = str(entry["name"]).rstrip("/")
            name = key.rpartition("/")[2]
            if entry["type"] == "directory":
                if key != folder and not name.startswith("."):
                    inside.append(key)
            elif key == path or (_suffix(name) in suffixes and not name.startswith(".")):
                yield key
        pending += reversed(inside)


def _first_magic(text: str) -> int:
    return min(i for i in map(text.find, "*?[") if i >= 0)


def _matches(path: str, pattern: str) -> bool:
    """`**` crosses folders, `*` does not."""
    if "**" in pattern:
        return fnmatch.fnmatchcase(path, pattern.replace("**/", "*"))
    return path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern)


def _below(uri: str, root: str) -> str:
    return _printable(unquote_to_bytes(uri.removeprefix(root)))


def _printable(name: bytes) -> str:
    """The name in valid UTF-8: bytes that are none appear as \\xNN."""
    return name.decode("utf-8", "backslashreplace")


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def _listed(given: str, options: SourceOptions) -> Iterator[Item]:
    """Yields the lines of a list; relative ones are below --image-root, else beside the list."""
    base = options.image_root or os.path.dirname(given) or "."  # noqa: PTH120
    with _opened(given) as file:
        for raw in file:
            if not (line := raw.rstrip(b"\r\n")) or line.startswith(b"#"):
                continue
            yield _named(os.fsdecode(line), base)


def _coco(given: str, options: SourceOptions) -> Iterator[Item]:
    if not options.image_root:
        raise ValueError(f"{given} needs --image-root, the folder of its pictures")
    try:
        content = parse_json(_bytes(given))
        images = objects(content.get("images") if isinstance(content, dict) else None, "image")
        ids = column(images, "id", np.int64, "image").tolist()
        names = texts(images, "file_name", "image")
    except ValueError as error:
        raise ValueError(f"{given} is not a COCO annotation file: {error}") from None
    for image_id, name in sorted(zip(ids, names, strict=True)):
        item = _named(name, options.image_root)
        yield Item(item.uri, name, image_id)


def _named(name: str, base: str) -> Item:
    if uris.is_url(name) or os.path.isabs(name):  # noqa: PTH117
        uri = uris.of_location(name)
        return Item(uri, uri)
    uri = uris.of_location(f"{base.rstrip('/')}/{name}")
    return Item(uri, _printable(os.fsencode(name)))


def _table(given: str, options: SourceOptions) -> Iterator[Item]:
    """Yields the pictures of a Parquet column: paths, URLs, or the bytes themselves by row."""
    column, uri = options.image_column, uris.of_location(given)
    with _opened(given) as file:
        table = pq.ParquetFile(file)
        if column not in (names := table.schema_arrow.names):
            raise ValueError(
                f"{given} has no column {column!r}, it has {', '.join(names)}: set --image-column"
            )
        if not _is_text(table.schema_arrow.field(column).type):
            for row in range(table.metadata.num_rows):
                yield Item(uris.with_row(uri, row), f"{uri.rpartition('/')[2]}#row={row}")
            return
        base = options.image_root or os.path.dirname(given)  # noqa: PTH120
        for batch in table.iter_batches(65536, columns=[column]):
            for name in batch.column(0).to_pylist():
                yield _named(str(name), base)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _opened(given: str) -> BinaryIO:
    uri = uris.of_location(given)
    if uris.is_local(uri):
        try:
            return Path(uris.to_path(uri)).open("rb")
        except OSError as error:
            raise ValueError(f"{given} cannot be read: {error.strerror}") from None
    return io.BytesIO(read_file(uri))


def _bytes(given: str) -> bytes:
    with _opened(given) as file:
        return file.read()


def batched(items: Iterable[Item], count: int) -> Iterator[list[Item]]:
    """Yields the items in lists of `count`."""
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == count:
            yield batch
            batch = []
    if batch:
        yield batch
