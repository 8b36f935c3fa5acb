"""Asks an HTTP address again and again from many connections, as lightly as Python can.

    python benchmarks/load.py ADDRESS PICTURE --clients 8 --seconds 5

Prints JSON: counts by status, failures, requests a second and milliseconds of the answers. A client
waits for its answer before it asks again; one that is told to come back waits `--pause` seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Tally:
    """What the clients saw; latencies in milliseconds by status."""

    latencies: dict[int, list[float]] = field(default_factory=dict)
    problems: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    without_retry_after: int = 0
    seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        good = sorted(self.latencies.get(200, []))
        return {
            "statuses": {str(s): len(each) for s, each in sorted(self.latencies.items())},
            "failures": dict(self.problems),
            "wrong": self.wrong,
            "without_retry_after": self.without_retry_after,
            "rate": round(len(good) / self.seconds, 1) if self.seconds else 0,
            **{f"p{p}_ms": _percentile(good, p) for p in (50, 95, 99)},
            "max_ms": round(good[-1], 1) if good else None,
        }


def _percentile(ordered: list[float], percent: int) -> float | None:
    return round(ordered[len(ordered) * percent // 100], 2) if ordered else None


class Connection(asyncio.Protocol):
    """One keep-alive connection; `ask` sends a request and returns status, headers and body."""

    def __init__(self) -> None:
        self.buffer = b""
        self.answer: asyncio.Future[tuple[int, bytes, bytes]] | None = None
        self.transport: asyncio.Transport | None = None
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(ConnectionResetError("closed before the answer"))

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head_end = self.buffer.find(b"\r\n\r\n")
        if head_end < 0 or self.answer is None or self.answer.done():
            return
        head = self.buffer[:head_end].lower()
        place = head.find(b"content-length:")
        length = int(head[place + 15 :].split(b"\r\n")[0]) if place >= 0 else 0
        end = head_end + 4 + length
        if len(self.buffer) >= end:
            body, self.buffer = self.buffer[head_end + 4 : end], self.buffer[end:]
            if b"connection: close" in head:
                self.lost = True
            self.answer.set_result((int(head[9:12]), head, body))

    async def ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        assert self.transport is not None
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.answer


async def drive(
    address: str,
    bodies: list[bytes],
    *,
    clients: int,
    seconds: float,
    pause: float = 0.0,
    timeout: float = 40.0,
    expect: list[bytes] | None = None,
) -> Tally:
    """Returns what `clients` saw in `seconds`.

    expect: for each body, bytes that its answer must hold.
    """
    url = urlsplit(address)
    requests = [_request(url.netloc, url.path, url.query, body) for body in bodies]
    tally, start = Tally(), time.monotonic()
    end = start + seconds
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stopped.set)

    async def client(number: int) -> None:
        connection: Connection | None = None
        turn = number
        while time.monotonic() < end and not stopped.is_set():
            turn += 1
            which = turn % len(requests)
            try:
                if connection is None or connection.lost:
                    _, connection = await asyncio.get_running_loop().create_connection(
                        Connection, url.hostname, url.port
                    )
                sent = time.monotonic()
                async with asyncio.timeout(timeout):
                    status, head, body = await connection.ask(requests[which])
            except TimeoutError:
                tally.problems["hung"] += 1
                connection = None
                continue
            except OSError as error:
                tally.problems[type(error).__name__] += 1
                connection = None
                await asyncio.sleep(0.05)
                continue
            tally.latencies.setdefault(status, []).append(1000 * (time.monotonic() - sent))
            if status == 200:
                if expect is not None and expect[which] not in body:
                    tally.wrong += 1
            else:
                if b"retry-after:" not in head:
                    tally.without_retry_after += 1
                await asyncio.sleep(pause)

    await asyncio.gather(*(client(number) for number in range(clients)))
    tally.seconds = time.monotonic() - start
    return tally


def _request(host: str, path: str, query: str, body: bytes) -> bytes:
    target = path + (f"?{query}" if query else "")
    head = (
        f"POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--sizes", nargs="*", default=None, help="WxH that answers must tell")
    args = parser.parse_args()
    expect = None
    if args.sizes:
        pairs = [size.split("x") for size in args.sizes]
        expect = [f'"width":{w},"height":{h}'.encode() for w, h in pairs]
    tally = asyncio.run(
        drive(
            args.address,
            [path.read_bytes() for path in args.pictures],
            clients=args.clients,
            seconds=args.seconds,
            pause=args.pause,
            expect=expect,
        )
    )
    print(json.dumps(tally.summary()))


if __name__ == "__main__":
    main()
