"""`d2det serve` ends whenever it is told to, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from d2det_platform.cli import INTERRUPTED, OK
from d2det_platform.serve.local import free_port

pytestmark = pytest.mark.ray
START_S, STOP_S = 120, 90


def test_it_ends_when_it_is_interrupted_as_soon_as_it_answers() -> None:
    """In the background of a shell, which ignores Ctrl-C, and maybe before it says "ready"."""
    before, port = _folders(), free_port()
    command = [sys.executable, "-m", "d2det_platform.cli", "serve"]
    command += ["--model", "d2det_platform.serve.trial:Echo", "--port", str(port)]
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(["bash", "-c", 'trap "" INT; exec "$@"', "bash", *command], env=own)
    try:
        _wait_until_it_answers(port, process)
        (folder,) = _folders() - before
        process.send_signal(signal.SIGINT)
        assert process.wait(STOP_S) in (OK, INTERRUPTED)
    finally:
        process.kill()
        process.wait()
    assert not folder.exists()
    assert not _processes_that_name(folder)


def _folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("d2det-serve-*"))


def _processes_that_name(folder: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            if str(folder).encode() in (command := path.read_bytes()):
                found.append(command.decode())
    return found


def _wait_until_it_answers(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert process.poll() is None, "it has ended"
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise AssertionError("it does not answer")
