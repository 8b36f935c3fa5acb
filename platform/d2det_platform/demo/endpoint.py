"""The endpoint as a client sees it: start it, wait until it is ready, ask, stop."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from d2det_platform.demo.steps import environment, verb

READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0
_ASK_TIMEOUT_S = 60.0


@contextmanager
def endpoint(*args: object) -> Iterator[str]:
    """Runs `d2det serve ARGS` on a free port of this machine and yields its address when ready.

    Raises:
        RuntimeError: It ended, or was not ready in time.
    """
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    command = verb("serve", *args, "--host", "127.0.0.1", "--port", port)
    server = subprocess.Popen(command, env=environment())
    try:
        _wait_until_ready(server, address)
        yield address
    finally:
        _stop(server)


def ask(address: str, picture: Path, **parameters: str) -> tuple[dict[str, Any], float]:
    """Returns the endpoint's answer to a picture, and how many seconds it took.

    Raises:
        RuntimeError: It gave none.
    """
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    request = urllib.request.Request(
        f"{address}/v1/detect?{query}",
        data=picture.read_bytes(),
        headers={"Content-Type": "application/octet-stream"},
        method="POST",
    )
    started = time.perf_counter()
    try:
        with urllib.request.urlopen(request, timeout=_ASK_TIMEOUT_S) as answer:
            content: dict[str, Any] = json.loads(answer.read())
    except (OSError, ValueError) as error:
        raise RuntimeError(f"{address} gave no answer: {error}") from None
    return content, time.perf_counter() - started


def largest_difference(
    ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]
) -> float | None:
    """Returns the largest distance in pixels between boxes of two lists of detections, in order.

    None: they differ in number or in labels.
    """
    if [row["label"] for row in ours] != [row["label"] for row in theirs]:
        return None
    pairs = zip(ours, theirs, strict=True)
    return max(
        (abs(a - b) for one, two in pairs for a, b in zip(one["bbox"], two["bbox"], strict=True)),
        default=0.0,
    )


def _wait_until_ready(server: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"`d2det serve` ended with exit code {server.returncode}")
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"`d2det serve` was not ready within {READY_TIMEOUT_S:.0f} s")


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGINT)
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
