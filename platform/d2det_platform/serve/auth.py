"""API keys: named, kept as sha256, compared in constant time, read again when their file changes.

A file holds one key a line, `name sha256:HEX`; empty lines and those that begin with # are skipped.
The key itself is shown once, when it is made, and stored nowhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0
"""How often the file is looked at."""
_LINE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63})\s+sha256:(?P<digest>[0-9a-f]{64})")
_PREFIX = "d2k_"
"""Begins every key, so that scanners for leaked secrets know one."""


class Keys:
    """The keys in a file.

    Raises:
        ValueError: The file cannot be read, or a line is no key; said with its number.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._keys = read_keys(path)
        self._stamp = _stamp(path)
        self._looked_at = clock()

    def name_of(self, authorization: str | None) -> str | None:
        """Returns the name of the key in an Authorization header, or None where none is right."""
        self._reload_if_changed()
        presented = key_in(authorization)
        if presented is None:
            return None
        digest = hashlib.sha256(presented).hexdigest()
        found = None
        for name, stored in self._keys.items():  # all of them, whichever it is
            if hmac.compare_digest(stored, digest):
                found = name
        return found

    def _reload_if_changed(self) -> None:
        now = self._clock()
        if now - self._looked_at < CHECK_EVERY_S:
            return
        self._looked_at = now
        try:
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return
            self._keys, self._stamp = read_keys(self._path), stamp
            logger.info("keys read again: %s", ", ".join(self._keys))
        except ValueError as error:
            logger.error("keys not read again, the old ones hold: %s", error)


def read_keys(path: Path) -> dict[str, str]:
    """Returns the sha256 of each key by name.

    Raises:
        ValueError: The file cannot be read, holds no key, or a line is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise ValueError(f"keys file {path} cannot be read: {error}") from None
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not (line := line.strip()) or line.startswith("#"):
            continue
        if not (match := _LINE.fullmatch(line)):
            raise ValueError(f"keys file {path}, line {number}: not `name sha256:HEX`")
        if match["name"] in keys:
            raise ValueError(f"keys file {path}, line {number}: {match['name']} comes twice")
        keys[match["name"]] = match["digest"]
    if not keys:
        raise ValueError(f"keys file {path} holds no key")
    return keys


def new_key(name: str) -> tuple[str, str]:
    """Returns a new random key and the line for the keys file.

    Raises:
        ValueError: The name has other characters than letters, digits, dots, dashes.
    """
    key = _PREFIX + secrets.token_urlsafe(32)
    line = f"{name} sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    if not _LINE.fullmatch(line):
        raise ValueError(f"name {name!r} must be letters, digits, dots and dashes, at most 64")
    return key, line


def key_in(authorization: str | None) -> bytes | None:
    """Returns the key in an Authorization header: Bearer, or the password of Basic."""
    scheme, _, value = (authorization or "").partition(" ")
    value = value.strip()
    if not value:
        return None
    if scheme.lower() == "bearer":
        return value.encode("utf-8", "surrogateescape")
    if scheme.lower() == "basic":
        try:
            _, colon, password = base64.b64decode(value, validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return None
        return password if colon else None
    return None


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(f"keys file {path} cannot be read: {error.strerror}") from None
    return status.st_mtime_ns, status.st_size, status.st_ino
