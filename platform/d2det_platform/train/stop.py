"""How a running training is asked to stop: by a file `stop` in its run folder.

The file works for any storage, from any machine, and needs no connection to the cluster. Ctrl-C
and SIGTERM at the driver write it; a person may too.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from d2det_platform.store import RunStore

logger = logging.getLogger(__name__)

FILE = "stop"
POLL_S, REMOTE_POLL_S = 1.0, 5.0
"""How often the run folder is looked at."""


class StopWatch:
    """Looks for the file in a thread, so that a slow object store does not slow training."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._seen = threading.Event()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="stop file", daemon=True).start()

    @property
    def is_requested(self) -> bool:
        """Whether somebody asked the run to stop."""
        return self._seen.is_set()

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(POLL_S if self._store.is_local else REMOTE_POLL_S):
            try:
                self._store.read(FILE)
            except FileNotFoundError:
                continue
            except OSError as error:
                logger.warning("cannot look for %s: %s", self._store.path(FILE), error)
                continue
            self._seen.set()
            return


def clear(store: RunStore) -> None:
    """Removes a request that was meant for an earlier start of the run."""
    store.remove(FILE)


@contextlib.contextmanager
def signals_stop(store: RunStore) -> Iterator[None]:
    """Turns the first SIGINT or SIGTERM into a request to stop; a second one ends at once.

    Only the main thread can take signals; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _: FrameType | None) -> None:
        for kind, handler in old.items():
            signal.signal(kind, handler)
        logger.warning(
            "%s: stopping after this step with a checkpoint; once more ends at once",
            signal.Signals(number).name,
        )
        store.write(FILE, signal.Signals(number).name.encode())

    old = {kind: signal.signal(kind, handle) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in old.items():
            signal.signal(kind, handler)
