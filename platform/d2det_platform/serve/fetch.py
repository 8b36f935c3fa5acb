"""Fetches pictures from allowed addresses: no redirects, limits on size and time, one connection.

Object store addresses that begin as `allow_prefixes` say go through fsspec.
"""

from __future__ import annotations

import asyncio
import http.client
import posixpath
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any

from d2det_platform.serve.addresses import Resolve, Target, target_of
from d2det_platform.serve.options import Outside
from d2det_platform.serve.problems import Problem

CONNECT_S = 5.0
_CHUNK = 1 << 16
_SCHEMES = ("s3://", "gs://", "az://", "abfs://", "memory://")


def resolve(host: str, port: int) -> Sequence[str]:
    """Returns the IPs of a host, by the system's resolver."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Fetcher:
    """Fetches from where `outside` allows.

    Args:
        outside: what is allowed.
        resolver: names to IPs.
        headers: sent to hosts of `private_hosts`, as Label Studio's token.
    """

    def __init__(
        self, outside: Outside, *, resolver: Resolve = resolve, token: str | None = None
    ) -> None:
        self._outside = outside
        self._resolve = resolver
        self._token = token

    async def __call__(self, url: str, limit: int, seconds: float) -> bytes:
        """Returns the bytes at an address, at most `limit`, within `seconds`.

        Raises:
            Problem: url_not_allowed, fetch_failed, too_large or timeout.
        """
        deadline = time.monotonic() + seconds
        work = asyncio.to_thread(self._fetch, url, limit, deadline)
        try:
            return await asyncio.wait_for(work, max(seconds, 0.001))
        except TimeoutError:
            raise Problem("timeout", "the address did not answer in time") from None

    def _fetch(self, url: str, limit: int, deadline: float) -> bytes:
        if url.startswith(_SCHEMES):
            return _from_store(url, self._outside.allow_prefixes, limit)
        target = target_of(url, self._outside, self._resolve)
        is_private = target.host in self._outside.private_hosts
        try:
            return _get(target, limit, deadline, self._token if is_private else None)
        except (OSError, http.client.HTTPException):
            raise Problem("fetch_failed", f"{target.host} did not give the picture") from None


class _Pinned(http.client.HTTPConnection):
    """A connection to an IP that has been checked, under the name of its host."""

    def __init__(self, target: Target, timeout: float) -> None:
        super().__init__(target.host, target.port, timeout=timeout)
        self._target = target

    def connect(self) -> None:
        """Connects; a certificate must be the host's."""
        self.sock: Any = socket.create_connection(
            (self._target.ip, self._target.port), self.timeout
        )
        if self._target.is_tls:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self._target.host)


def _get(target: Target, limit: int, deadline: float, token: str | None) -> bytes:
    connection = _Pinned(target, CONNECT_S)
    headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "d2det"}
    if token is not None:
        headers["Authorization"] = f"Token {token}"
    try:
        connection.request("GET", target.path, headers=headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise Problem("fetch_failed", f"{target.host} answered {answer.status}")
        parts, size = [], 0
        while chunk := answer.read1(_CHUNK):
            size += len(chunk)
            if size > limit:
                raise Problem("too_large", f"the picture is larger than {limit} bytes", limit=limit)
            if time.monotonic() > deadline:
                raise Problem("timeout", "the address did not answer in time")
            parts.append(chunk)
        return b"".join(parts)
    finally:
        connection.close()


def _from_store(url: str, prefixes: Sequence[str], limit: int) -> bytes:
    scheme, _, path = url.partition("://")
    plain = posixpath.normpath(path) == path and "?" not in path and "\\" not in path
    if not plain or not any(url.startswith(prefix) for prefix in prefixes):
        raise Problem(
            "url_not_allowed", "the address is refused: it is not below one that this server reads"
        )
    import fsspec

    try:
        with fsspec.open(url, "rb") as file:
            data = bytes(file.read(limit + 1))
    except (OSError, ImportError, ValueError):
        raise Problem("fetch_failed", f"the {scheme} store did not give the picture") from None
    if len(data) > limit:
        raise Problem("too_large", f"the picture is larger than {limit} bytes", limit=limit)
    return data
