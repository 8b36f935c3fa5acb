"""Request bodies: read with limits on size, time and memory, inflated, taken apart."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.requests import Request

from d2det_platform.serve import problems
from d2det_platform.serve.forms import parts_of
from d2det_platform.serve.limits import Limits
from d2det_platform.serve.problems import Problem

CLOSE = {"Connection": "close"}
"""The rest of a body that is refused is not read."""
_INFLATE_IN_THREAD = 65_536
"""Compressed bytes from which inflating leaves the event loop."""
_LENGTH_DIGITS = 18
"""More than any body has; Python itself refuses to read thousands."""
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_RAW_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""What clients call a body that they do not name; curl's --data-binary says the last."""


@dataclass(frozen=True)
class Upload:
    """A picture as it came: encoded, by its address, or as (H, W, 3) uint8 RGB pixels."""

    name: str
    data: bytes = b""
    url: str | None = None
    pixels: NDArray[np.uint8] | None = None


class Intake:
    """Reads bodies for one process, counting the bytes that it holds."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held = 0

    @contextlib.contextmanager
    def holding(self) -> Iterator[Held]:
        """Counts the bytes that a request reads until it is answered."""
        held = Held(self)
        try:
            yield held
        finally:
            self.held -= held.size

    async def read(self, request: Request, held: Held, limit: int | None = None) -> bytes:
        """Returns the body, inflated where the client compressed it.

        limit: in bytes, where it is not that of pictures.

        Raises:
            Problem: too_large, slow_body, unsupported_media_type, malformed or unavailable.
        """
        usual = self._limits.max_body_bytes
        limit = limit or usual
        seconds = self._limits.body_timeout_s * max(1, limit / usual)
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "") and encoding not in _WINDOW_BITS:
            raise Problem(
                "unsupported_media_type",
                f"content encoding {encoding[:40]!r} is not read; send gzip, deflate or plain",
                headers={"Accept-Encoding": "gzip, deflate"} | CLOSE,
            )
        check_length(request, limit)
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(seconds):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > limit:
                        raise too_large(limit)
                    held.add(len(chunk))
                    parts.append(chunk)
        except TimeoutError:
            raise Problem("slow_body", "the body did not arrive in time", headers=CLOSE) from None
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        if encoding not in _WINDOW_BITS:
            return body
        if len(body) < _INFLATE_IN_THREAD:
            inflated = inflate(body, encoding, limit)
        else:
            inflated = await asyncio.to_thread(inflate, body, encoding, limit)
        held.add(len(inflated))
        return inflated

    def _take(self, size: int) -> None:
        if self.held + size > self._limits.max_buffered_bytes:
            raise problems.unavailable("too many large requests at once", retry_after_s=1)
        self.held += size


class Held:
    """Bytes of one request."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self.size = 0

    def add(self, size: int) -> None:
        """Counts further bytes, or raises the problem "unavailable" where there is no room."""
        self._intake._take(size)
        self.size += size


def check_length(request: Request, limit: int) -> None:
    """Refuses by the Content-Length header what is longer than `limit` bytes."""
    length = request.headers.get("content-length")
    if length is None:
        return
    if (size := bytes_in_header(length)) is None:
        raise Problem("malformed", "Content-Length is no number of bytes", headers=CLOSE)
    if size > limit:
        raise too_large(limit)


def bytes_in_header(text: str) -> int | None:
    """Returns the number of bytes that a header states, or None where it states none."""
    is_number = text.isascii() and text.isdigit() and len(text) <= _LENGTH_DIGITS
    return int(text) if is_number else None


def too_large(limit: int) -> Problem:
    """Returns the problem of a body that is too long."""
    return Problem(
        "too_large", f"the body is larger than {limit} bytes", headers=CLOSE, limit=limit
    )


def inflate(data: bytes, encoding: str, limit: int) -> bytes:
    """Returns what is compressed in `data`, at most `limit` bytes of it.

    Raises:
        Problem: too_large, or malformed.
    """
    for bits in (_WINDOW_BITS[encoding], -15):  # "deflate" is also sent without its header
        inflater = zlib.decompressobj(bits)
        try:
            inflated = inflater.decompress(data, limit + 1)
        except zlib.error:
            if encoding == "deflate" and bits > 0:
                continue
            break
        if len(inflated) > limit:
            raise too_large(limit)
        if not inflater.eof or inflater.unused_data:
            break
        return inflated
    raise Problem("malformed", f"the body is not {encoding} data")


def uploads_of(request: Request, body: bytes, limits: Limits) -> list[Upload]:
    """Returns the pictures in a body: raw, multipart/form-data, or JSON with b64 or url.

    Raises:
        Problem: unsupported_media_type, malformed, invalid_parameter or too_many_pictures.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind in _RAW_TYPES or kind.startswith("image/"):
        return [Upload(_name_in(request), body)]
    if kind == "multipart/form-data":
        return _from_form(request, body, limits)
    if kind == "application/json":
        return _from_json(body, limits)
    raise Problem(
        "unsupported_media_type",
        f"{kind[:80]!r} is not read; send image/*, multipart/form-data or application/json",
    )


def too_many(limits: Limits) -> Problem:
    """Returns the problem of a request with too many pictures."""
    return Problem(
        "too_many_pictures",
        f"a request may hold {limits.max_pictures} pictures",
        limit=limits.max_pictures,
    )


def _name_in(request: Request) -> str:
    return printable(request.query_params.get("file_name", "")) or "picture"


def printable(name: str) -> str:
    """Returns a name without control characters, at most 255 characters of it."""
    return "".join(c for c in name[:255] if c.isprintable())


def _from_form(request: Request, body: bytes, limits: Limits) -> list[Upload]:
    kind = request.headers["content-type"]
    parts = parts_of(body, kind, max_parts=limits.max_pictures)
    if not parts:
        raise Problem("invalid_parameter", "the form holds no file", parameter="file")
    return [Upload(printable(name) or f"picture {i}", data) for i, (name, data) in enumerate(parts)]


def _from_json(body: bytes, limits: Limits) -> list[Upload]:
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Problem("malformed", "the body is not JSON") from None
    if not isinstance(values, dict):
        raise Problem("invalid_parameter", "the body must be an object with `image` or `images`")
    images = values.get("images", [values["image"]] if "image" in values else None)
    if not isinstance(images, list) or not images:
        raise Problem("invalid_parameter", "give `image`, or a list `images`", parameter="images")
    if len(images) > limits.max_pictures:
        raise too_many(limits)
    return [_from_entry(i, entry) for i, entry in enumerate(images)]


def _from_entry(i: int, entry: object) -> Upload:
    if isinstance(entry, dict) and len({"b64", "url"} & entry.keys()) == 1:
        name = entry.get("file_name", f"picture {i}")
        url, text = entry.get("url"), entry.get("b64")
        if isinstance(name, str) and isinstance(url, str):
            return Upload(printable(name), url=url)
        if isinstance(name, str) and isinstance(text, str):
            return Upload(printable(name), from_base64(text))
    raise Problem(
        "invalid_parameter",
        f"picture {i} must be an object with a text `b64` or `url`",
        parameter="images",
    )


def from_base64(text: str) -> bytes:
    """Returns the bytes in base64, also in a data address.

    Raises:
        Problem: invalid_parameter.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Problem("invalid_parameter", "b64 is not base64", parameter="b64") from None
