"""Who may call: holders of a key, or this machine alone; and what the logs say about it."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from pathlib import Path

import httpx
import pytest

from d2det_platform.serve.auth import Keys, key_in, new_key, read_keys
from d2det_platform.serve.middleware import OPEN_PATHS
from tests.platform.serve.endpoint import jpeg, serving
from tests.platform.serve.test_native import is_problem


@pytest.fixture
def keyed(tmp_path: Path) -> tuple[Path, str, str]:
    """A file of two keys, and the keys of alice and bob."""
    path = tmp_path / "keys"
    (alice, line_a), (bob, line_b) = new_key("alice"), new_key("bob")
    path.write_text(f"# ours\n{line_a}\n\n{line_b}\n")
    return path, alice, bob


def basic(key: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{key}".encode()).decode()


def test_keys_open_as_bearer_and_as_password_and_nothing_else_does(keyed) -> None:
    path, alice, bob = keyed
    keys = Keys(path)
    assert keys.name_of(f"Bearer {alice}") == "alice"
    assert keys.name_of(f"bearer  {bob}") == "bob"
    assert keys.name_of(basic(bob)) == "bob"
    for wrong in (
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {alice}x",
        f"Bearer {alice[:-1]}",
        alice,
        f"Token {alice}",
        "Basic !",
        "Basic " + base64.b64encode(alice.encode()).decode(),
        "Bearer \udcff",
    ):
        assert keys.name_of(wrong) is None, wrong


def test_a_key_is_stored_nowhere(keyed) -> None:
    path, alice, _ = keyed
    assert alice not in path.read_text()
    assert key_in(f"Bearer {alice}") == alice.encode()
    assert new_key("a")[0] != new_key("a")[0]


def test_a_changed_file_is_read_again_and_a_broken_one_is_not(keyed) -> None:
    path, alice, _ = keyed
    now = 0.0
    keys = Keys(path, clock=lambda: now)
    carol, line = new_key("carol")
    path.write_text(line + "\n")
    assert keys.name_of(f"Bearer {alice}") == "alice"  # not looked at yet
    now += 2
    assert keys.name_of(f"Bearer {alice}") is None
    assert keys.name_of(f"Bearer {carol}") == "carol"
    path.write_text("nonsense")
    now += 2
    assert keys.name_of(f"Bearer {carol}") == "carol"
    path.unlink()
    now += 2
    assert keys.name_of(f"Bearer {carol}") == "carol"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ("alice", "line 1"),
        ("alice sha256:12", "line 1"),
        (f"a sha256:{'0' * 64}\na sha256:{'1' * 64}", "line 2: a comes twice"),
    ],
)
def test_bad_key_files_are_refused_by_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_keys(path)


def test_without_a_key_only_what_tells_nothing_is_open(keyed) -> None:
    path, alice, _ = keyed

    async def check() -> None:
        async with serving(keys=Keys(path), client=("203.0.113.9", 1)) as http:
            paths = (await http.get("/openapi.json")).json()["paths"]
            for place, methods in paths.items():
                for method in methods:
                    url = place.replace("{model}", "d2det").replace("{version}", "1")
                    answer = await http.request(method, url, content=jpeg())
                    if place in OPEN_PATHS:
                        assert answer.status_code == 200
                    else:
                        is_problem(answer, 401, "unauthorized")
                        assert answer.headers["www-authenticate"].startswith("Bearer")
            is_problem(await http.get("/nothing"), 401, "unauthorized")
            for authorization in (f"Bearer {alice}", basic(alice)):
                headers = {"Authorization": authorization}
                answer = await http.post("/v1/detect", content=jpeg(), headers=headers)
                assert answer.status_code == 200

    asyncio.run(check())


@pytest.mark.parametrize(
    ("client", "host", "is_let_in"),
    [
        (("127.0.0.1", 1), "localhost:8000", True),
        (("127.0.0.1", 1), "127.0.0.1:8000", True),
        (("::1", 1), "[::1]:8000", True),
        (("::ffff:127.0.0.1", 1), "localhost", True),
        (("127.0.0.1", 1), "evil.example", False),
        (("127.0.0.1", 1), "localhost.evil.example:8000", False),
        (("203.0.113.9", 1), "localhost", False),
        (("::ffff:203.0.113.9", 1), "localhost", False),
        (("not an address", 1), "localhost", False),
    ],
)
def test_without_keys_this_machine_alone_is_served(client, host: str, is_let_in: bool) -> None:
    async def check() -> None:
        async with serving(client=client) as http:
            answer = await http.get("/v1/model", headers={"Host": host})
            if is_let_in:
                assert answer.status_code == 200
            else:
                is_problem(answer, 403, "forbidden")

    asyncio.run(check())


def test_no_secret_and_no_picture_is_logged(keyed, caplog: pytest.LogCaptureFixture) -> None:
    path, alice, _ = keyed
    caplog.set_level(logging.DEBUG)

    def broken(images: list) -> list:
        raise RuntimeError("the model is broken")

    async def check(http: httpx.AsyncClient, canary: str) -> None:
        headers = {"Authorization": f"Bearer {alice}", "Cookie": canary, "X-Request-ID": "one"}
        await http.post(f"/v1/detect?file_name={canary}", content=jpeg(), headers=headers)
        await http.post("/v1/detect", content=canary.encode(), headers=headers)
        await http.get(f"/{canary}", headers=headers)
        await http.get("/v1/model", headers={"Authorization": f"Bearer {canary}"})
        address = f"https://user:{canary}@host.example/a?X-Amz-Signature={canary}"
        await http.post("/v1/detect", json={"image": {"url": address}}, headers=headers)

    async def run() -> None:
        for predict in (None, broken):
            chosen = {} if predict is None else {"predict": predict}
            async with serving(keys=Keys(path), **chosen) as http:
                await check(http, "canary-8f2a")

    asyncio.run(run())
    ours = [record for record in caplog.records if record.name.startswith("d2det")]
    text = "\n".join(caplog.handler.format(record) for record in ours)  # httpx is the client
    assert "canary-8f2a" not in text
    assert alice not in text
    lines = [r for r in caplog.records if r.name == "d2det_platform.serve.access"]
    first = json.loads(lines[0].getMessage())
    assert first["request_id"] == "one"
    assert (first["route"], first["status"], first["key"]) == ("/v1/detect", 200, "alice")
    assert first["pictures"] == 1


def test_an_error_of_ours_is_a_problem_without_its_cause(monkeypatch) -> None:
    async def check() -> None:
        async with serving() as http:

            async def broken(*args: object, **kwargs: object) -> None:
                raise KeyError("/secret/path")

            monkeypatch.setattr(http.service, "detect", broken)  # type: ignore[attr-defined]
            answer = await http.post("/v1/detect", content=jpeg())
            assert "secret" not in json.dumps(is_problem(answer, 500, "internal"))

    asyncio.run(check())
