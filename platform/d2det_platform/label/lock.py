"""Keeps two drivers from doing the same work in one folder.

Only a courtesy: names and contents of all files are functions of the run, so two drivers at once
would write the same files twice. Therefore the lock may be simple, and stealing it needs no proof.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Self

from d2det_platform.label.layout import LOCK
from d2det_platform.store import RunStore

logger = logging.getLogger(__name__)

_BEATS = 6
"""Signs of life within the time after which silence means death."""


class LockedError(ValueError):
    """Another driver works here; the message names it."""


class Lock:
    """Held while a driver works in a folder; the context waits for nobody who is alive.

    Raises:
        LockedError: another driver is at work.
    """

    def __init__(self, store: RunStore, *, timeout_s: float) -> None:
        self._store, self._timeout_s = store, timeout_s
        self._own = {
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        self._beat = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lock", daemon=True)

    def __enter__(self) -> Self:
        while not self._store.create(LOCK, self._content()):
            other = self._read()
            if other is not None and other["id"] == self._own["id"]:
                break  # written, though the answer was lost
            if other is not None and not self._is_dead(other):
                raise LockedError(
                    f"{self._store.url} is being labelled by process {other['pid']} on "
                    f"{other['host']} since {other['since']}; wait for it, or stop it first"
                )
            self._store.remove(LOCK)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        if (now := self._read()) is not None and now["id"] == self._own["id"]:
            self._store.remove(LOCK)

    def _is_dead(self, other: dict[str, Any]) -> bool:
        if other["host"] == self._own["host"]:
            return bool(_started(other["pid"]) != other["started"])
        logger.warning(
            "%s is locked by process %s on %s: waiting up to %.0f s for a sign of life",
            *(self._store.url, other["pid"], other["host"], self._timeout_s),
        )
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._timeout_s / _BEATS))
            if self._read() != other:
                return False
        return True

    def _keep(self) -> None:
        while not self._stopped.wait(self._timeout_s / _BEATS):
            self._beat += 1
            try:
                if (now := self._read()) is not None and now["id"] != self._own["id"]:
                    logger.warning("another driver took the lock; both write the same files")
                    return
                self._store.write(LOCK, self._content())
            except OSError as error:
                logger.warning("the lock cannot be renewed: %s", error)

    def _content(self) -> bytes:
        return json.dumps({**self._own, "beat": self._beat}).encode()

    def _read(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._store.read(LOCK)))
        except (FileNotFoundError, ValueError):
            return None


def _started(pid: int) -> str:
    """When a process of this machine started, in ticks since boot; empty where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    is_zombie = fields[0] == "Z"
    return "" if is_zombie else fields[19]
