"""Clients that misbehave on the wire, against a real port."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from d2det_platform.serve.limits import Limits
from tests.platform.serve.endpoint import jpeg, listening, options

LIMIT = 50_000


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    limits = Limits(max_body_bytes=LIMIT, body_timeout_s=1.5)
    with listening(given=options(limits=limits)) as found:
        yield found


def connected(address: str) -> socket.socket:
    host, _, port = address.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    return connection


def head(*lines: str) -> bytes:
    text = ["POST /v1/detect HTTP/1.1", "Host: localhost", *lines, "", ""]
    return "\r\n".join(text).encode()


def read_to_the_end(connection: socket.socket) -> bytes:
    found = b""
    while chunk := connection.recv(65_536):
        found += chunk
    return found


def test_a_length_over_the_limit_is_refused_before_the_body(address: str) -> None:
    with connected(address) as connection:
        connection.sendall(head("Content-Length: 10000000000"))
        answer = read_to_the_end(connection)  # which ends: the connection is closed
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"application/problem+json" in answer


def test_an_endless_body_is_cut_off_soon_after_the_limit(address: str) -> None:
    chunk = b"%x\r\n%s\r\n" % (10_000, bytes(10_000))
    sent = 0
    with connected(address) as connection:
        connection.sendall(head("Transfer-Encoding: chunked"))
        try:
            while sent < 200 * LIMIT:
                connection.sendall(chunk)
                sent += len(chunk)
        except OSError:
            pass
    assert sent < 200 * LIMIT
    assert httpx.post(f"{address}/v1/detect", content=jpeg()).status_code == 200


def test_clients_that_trickle_hold_nobody_up_and_are_let_go(address: str) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(connected(address)) for _ in range(100)]
        for connection in slow:
            connection.sendall(head("Content-Length: 1000") + b"x")
        start = time.monotonic()
        for _ in range(5):
            assert httpx.post(f"{address}/v1/detect", content=jpeg()).status_code == 200
        assert time.monotonic() - start < 30
        answers = [connection.recv(4096) for connection in slow]
    assert all(answer.startswith(b"HTTP/1.1 408") for answer in answers)


def test_a_client_that_leaves_in_the_middle_leaves_no_mark(address: str) -> None:
    for _ in range(20):
        with connected(address) as connection:
            connection.sendall(head("Content-Length: 1000") + b"x" * 10)
    assert httpx.post(f"{address}/v1/detect", content=jpeg()).status_code == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        head("Content-Length: -1"),
        head("Content-Length: 1", "Content-Length: 2"),
        head("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        head("Transfer-Encoding: chunked") + b"zz\r\n",
        b"POST /v1/detect HTTP/9.9\r\n\r\n",
        b"\r\n" * 1000,
    ],
    ids=["tls", "hosts", "negative", "lengths", "smuggled", "no chunk", "version", "lines"],
)
def test_broken_requests_end_in_4xx_or_a_closed_connection(
    address: str, request_bytes: bytes
) -> None:
    with connected(address) as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        try:
            answer = read_to_the_end(connection)
        except OSError:
            answer = b""
    assert not answer or answer[:10] == b"HTTP/1.1 4", answer[:100]
    assert httpx.post(f"{address}/v1/detect", content=jpeg()).status_code == 200
