"""multipart/form-data in memory: every part is a picture, whether or not it has a file name."""

from __future__ import annotations

from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from d2det_platform.serve.problems import Problem

MAX_HEADER_BYTES = 8192
"""Of the headers of a part."""


def parts_of(body: bytes, content_type: str, *, max_parts: int) -> list[tuple[str, bytes]]:
    """Returns file name (or field name) and content of each part, in order.

    Raises:
        Problem: malformed, or too_many_pictures.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary or len(boundary) > 200:
        raise Problem("malformed", "multipart/form-data needs a boundary")
    collector = _Collector(max_parts)
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        parser.write(body)
        parser.finalize()
    except MultipartParseError:
        raise Problem("malformed", "the form cannot be read") from None
    if not collector.is_ended:
        raise Problem("malformed", "the form ends early")
    return collector.parts


class _Collector:
    """Collects parts as the parser finds their pieces."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[tuple[str, bytes]] = []
        self.is_ended = False
        self._max_parts = max_parts
        self._pieces: list[bytes] = []
        self._field, self._value, self._disposition, self._header_bytes = b"", b"", b"", 0

    def callbacks(self) -> Any:
        """Returns what the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_field,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header,
            "on_part_data": self._on_data,
            "on_part_end": self._on_part,
            "on_end": self._on_end,
        }

    def _begin(self) -> None:
        if len(self.parts) >= self._max_parts:
            raise Problem(
                "too_many_pictures",
                f"a request may hold {self._max_parts} pictures",
                limit=self._max_parts,
            )
        self._pieces, self._disposition, self._header_bytes = [], b"", 0

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._field += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._value += data[start:end]

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise Problem("malformed", "a part of the form has too long headers")

    def _on_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field, self._value = b"", b""

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def _on_part(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"filename") or options.get(b"name") or b""
        self.parts.append((name.decode("utf-8", "replace"), b"".join(self._pieces)))

    def _on_end(self) -> None:
        self.is_ended = True
