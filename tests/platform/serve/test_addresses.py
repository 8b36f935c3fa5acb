"""No spelling of an address leads to where the endpoint was not sent."""

from __future__ import annotations

import asyncio
import http.server
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from d2det_platform.serve.addresses import is_public, target_of
from d2det_platform.serve.fetch import Fetcher
from d2det_platform.serve.options import Outside
from d2det_platform.serve.problems import Problem

OUTSIDE = Outside(
    allow_hosts=("img.example.org", "*.pictures.example", "inside.example"),
    private_hosts=("studio",),
    allow_prefixes=("s3://lake/flights/", "memory://lake/"),
)
PUBLIC, TRAP = "93.184.216.34", "127.0.0.1"

SPELLINGS = [
    "http://127.0.0.1:{port}/",
    "https://127.0.0.1:{port}/",
    "http://localhost:{port}/",
    "https://localhost/",
    "http://0.0.0.0:{port}/",
    "http://0:{port}/",
    "http://127.1:{port}/",
    "http://127.0.1:{port}/",
    "http://2130706433:{port}/",
    "http://0x7f000001:{port}/",
    "http://0x7f.0.0.1:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://017700000001:{port}/",
    "http://127.000.000.001:{port}/",
    "http://[::1]:{port}/",
    "http://[::]:{port}/",
    "http://[0:0:0:0:0:0:0:1]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[fe80::1%25lo]:{port}/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://metadata.google.internal/",
    "http://100.64.0.1/",
    "http://10.0.0.1/",
    "http://192.168.0.1/",
    "https://img.example.org:{port}/",
    "http://img.example.org/",
    "https://user@img.example.org/",
    "https://img.example.org@127.0.0.1:{port}/",
    "https://127.0.0.1:{port}#@img.example.org/",
    "https://127.0.0.1:{port}\\@img.example.org/",
    "https://img.example.org\\.evil.example/",
    "https://img.example.org.evil.example/",
    "https://evilimg.example.org/",
    "https://pictures.example/",
    "https://img.example.org%2f@127.0.0.1:{port}/",
    "https://img.example.org\t/",
    " https://img.example.org/",
    "https://img.example.org\r\nHost: x/",
    "https://ⓘmg.example.org/",
    "https://img。example。org/",
    "https:///img.example.org/",
    "https:img.example.org",
    "//img.example.org/a.jpg",
    "file:///etc/passwd",
    "ftp://img.example.org/a",
    "gopher://127.0.0.1:{port}/",
    "data:image/png;base64,AAAA",
    "s3://other/flights/a.tif",
    "s3://lake/flights/../secret",
    "s3://lake/flights/a?versionId=1",
    "s3://lake/flights",
    "memory://lake/../x",
    "https://inside.example/",
    "https://a.pictures.example/",
    "https://[img.example.org]/",
    "https://img.example.org:443:{port}/",
    "https://img.example.org:99999/",
    "jar:https://img.example.org!/",
    "",
    "https://",
    "https://" + "a" * 3000,
]


@pytest.fixture
def trap() -> Iterator[tuple[int, list[str]]]:
    """A server on loopback that remembers who connected."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def setup(self) -> None:
            seen.append("connected")
            super().setup()

        def do_GET(self) -> None:
            if self.path == "/elsewhere":
                self.send_response(302)
                self.send_header("Location", "http://127.0.0.1/")
                self.end_headers()
                return
            seen.append(self.headers.get("Authorization", "no key"))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"picture" * 100)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1], seen
    server.shutdown()
    server.server_close()


def resolver(host: str, port: int) -> Sequence[str]:
    """Names of the test; whatever is not public leads into the trap."""
    known = {
        "img.example.org": [PUBLIC],
        "a.pictures.example": [PUBLIC, TRAP],
        "studio": [TRAP],
    }
    return known.get(host, [TRAP])


def fetch(url: str, limit: int = 10_000, seconds: float = 5.0) -> bytes:
    fetcher = Fetcher(OUTSIDE, resolver=resolver, token="key")
    return asyncio.run(fetcher(url, limit, seconds))


def test_there_are_enough_spellings() -> None:
    assert len(SPELLINGS) >= 40
    assert len(set(SPELLINGS)) == len(SPELLINGS)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_spelling_connects(spelling: str, trap: tuple[int, list[str]]) -> None:
    port, seen = trap
    with pytest.raises(Problem) as caught:
        fetch(spelling.replace("{port}", str(port)))
    assert caught.value.code == "url_not_allowed"
    assert seen == []


def test_an_allowed_address_is_connected_to_by_the_ip_that_was_checked() -> None:
    target = target_of("https://img.example.org/a%20b.jpg?x=1", OUTSIDE, resolver)
    assert (target.ip, target.host, target.port) == (PUBLIC, "img.example.org", 443)
    assert target.path == "/a%20b.jpg?x=1"
    several = target_of("https://x.pictures.example/", OUTSIDE, lambda host, port: [PUBLIC])
    assert several.host == "x.pictures.example"


def test_a_private_host_may_be_next_door_and_gets_its_token(trap: tuple[int, list[str]]) -> None:
    port, seen = trap
    assert fetch(f"http://studio:{port}/data/upload/1.jpg").startswith(b"picture")
    assert "Token key" in seen


def test_redirects_are_not_followed(trap: tuple[int, list[str]]) -> None:
    port, seen = trap
    with pytest.raises(Problem) as caught:
        fetch(f"http://studio:{port}/elsewhere")
    assert caught.value.code == "fetch_failed"
    assert seen == ["connected"]


def test_what_is_fetched_has_limits(trap: tuple[int, list[str]]) -> None:
    port, _ = trap
    with pytest.raises(Problem) as caught:
        fetch(f"http://studio:{port}/", limit=100)
    assert caught.value.code == "too_large"


def test_object_stores_by_prefix_alone() -> None:
    import fsspec

    with fsspec.open("memory://lake/a.tif", "wb") as file:
        file.write(b"scene")
    assert fetch("memory://lake/a.tif") == b"scene"
    with pytest.raises(Problem):
        fetch("memory://other/a.tif")
    with pytest.raises(Problem) as caught:
        fetch("memory://lake/none.tif")
    assert caught.value.code == "fetch_failed"


def test_a_server_that_says_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        with pytest.raises(Problem) as caught:
            fetch(f"http://studio:{silent.getsockname()[1]}/", seconds=0.3)
        assert caught.value.code in ("timeout", "fetch_failed")
        assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("ip", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("240.0.0.1", False),
        ("192.0.2.1", False),
        ("198.18.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fc00::1", False),
        ("fd00:ec2::254", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:7f00:1::", False),
        ("2002:5db8:d822::", True),
    ],
)
def test_which_ips_are_public(ip: str, public: bool) -> None:
    assert is_public(ip) is public
