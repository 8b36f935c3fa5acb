"""A proxy on loopback that answers a share of all requests badly, as busy object stores do."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KINDS = ("500", "503", "stall", "cut")


class FaultyProxy:
    """Forwards to a server on loopback; `share` of the requests fail in one of four ways."""

    def __init__(self, port: int, *, share: float, stall_s: float, seed: int = 0) -> None:
        self.share = share
        self.faults: Counter[str] = Counter()
        self.requests = 0
        chance, lock = random.Random(seed), threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def _any(self) -> None:
                with lock:
                    proxy.requests += 1
                    fault = chance.choice(KINDS) if chance.random() < proxy.share else ""
                    proxy.faults[fault] += bool(fault)
                body = self._body()
                if fault == "stall":
                    time.sleep(stall_s)
                    self.close_connection = True
                    return
                if fault in ("500", "503"):
                    self._answer(int(fault), {}, b"<Error><Code>InternalError</Code></Error>")
                    return
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                headers = {**self.headers, "Connection": "close"}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                data = answer.read()
                kept = {
                    name: value
                    for name, value in answer.getheaders()
                    if name.lower() not in ("connection", "transfer-encoding", "content-length")
                }
                if self.command == "HEAD":
                    kept["Content-Length"] = answer.getheader("Content-Length") or "0"
                self._answer(answer.status, kept, data, cut=fault == "cut")

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any  # noqa: N815

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                    data = b""
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        data += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                    del self.headers["Transfer-Encoding"]
                    self.headers["Content-Length"] = str(len(data))
                    return data
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def _answer(
                self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False
            ) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if cut else data)
                if cut:
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stops it."""
        self._server.shutdown()
        self._server.server_close()
