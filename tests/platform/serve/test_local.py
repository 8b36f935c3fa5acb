"""What `d2det serve` sets up on one machine, as far as it can be seen without Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from d2det_platform.serve import local


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.7", False),
        ("example.org", False),
    ],
)
def test_which_addresses_only_this_machine_reaches(host: str, is_local: bool) -> None:
    assert local.is_loopback(host) is is_local


def test_two_endpoints_share_neither_files_nor_ports(tmp_path: Path) -> None:
    a, b = (local.serve_environment(tmp_path / name) for name in "ab")
    for name in a:
        if name.endswith(("_PORT", "_LOC", "_PATH", "_BASE", "_FILE")):
            assert a[name] != b[name], name


def test_the_proxys_own_error_is_a_problem_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_CONFIG_FILE_LOC", str(tmp_path / "haproxy.cfg"))
    local._let_the_proxy_answer_alike()
    assert not list(tmp_path.iterdir())  # where HAProxy has no such file, none is made
    page = tmp_path / "500.http"
    page.write_text("HTTP/1.1 500 Internal Server Error\r\n\r\n")
    local._let_the_proxy_answer_alike()
    head, _, body = page.read_bytes().partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 503 Service Unavailable"
    assert f"Content-Length: {len(body)}" in lines
    assert "Retry-After: 1" in lines
    assert json.loads(body)["code"] == "unavailable"


def test_only_processes_of_the_endpoint_are_ended(tmp_path: Path) -> None:
    code = "import time; print('up', flush=True); time.sleep(60)"
    ours, others = (
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / name / "haproxy.cfg")],
            stdout=subprocess.PIPE,
        )
        for name in ("ours", "others")
    )
    try:
        for process in (ours, others):  # a process has its command line a moment after it starts
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
        local.end_processes_of(tmp_path / "ours")
        assert ours.wait(10) != 0
        assert others.poll() is None
    finally:
        for process in (ours, others):
            process.kill()
            process.communicate()
