"""Files appear whole or not at all; of several creators one succeeds, on any kind of store."""

import hashlib
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from d2det_platform.store import RunStore


@pytest.fixture(params=["local", "memory", "without links"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RunStore:
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        return RunStore("memory://run")
    if request.param == "without links":

        def refuse(*_: object) -> None:
            raise PermissionError("no links here")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
    return RunStore(str(tmp_path))


def test_a_file_is_created_once(store: RunStore) -> None:
    assert not store.exists("a/b")
    assert store.create("a/b", b"first")
    assert not store.create("a/b", b"second")
    assert store.read("a/b") == b"first"
    store.write("a/b", b"third")
    assert store.read("a/b") == b"third"
    assert store.names("a") == ["b"]


def test_removing_what_is_not_there_is_fine(store: RunStore) -> None:
    store.remove("nothing")
    store.write("x", b"1")
    store.remove("x")
    assert not store.exists("x")


def test_a_local_file_of_any_size_is_uploaded_whole(store: RunStore, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"0123456789" * 300_000)
    store.upload("folder/copy", tmp_path / "source")
    assert store.read("folder/copy") == (tmp_path / "source").read_bytes()


def test_a_file_of_any_size_is_had_locally_in_little_memory(store: RunStore) -> None:
    content = b"0123456789" * 3_000_000
    store.write("folder/large", content)
    tracemalloc.start()
    with store.local_file("folder/large") as path, path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert digest == hashlib.sha256(content).hexdigest()
    assert store.is_local or not path.exists()
    if store.is_local:  # fsspec's store in memory makes copies of its own
        assert peak < len(content) / 4


def test_of_many_creators_at_once_one_succeeds(tmp_path: Path) -> None:
    store, created = RunStore(str(tmp_path)), []

    def create(number: int) -> None:
        if store.create("part", str(number).encode()):
            created.append(number)

    _together(create, 16)
    assert len(created) == 1
    assert store.read("part") == str(created[0]).encode()
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_readers_see_the_old_content_or_the_new(tmp_path: Path) -> None:
    store, seen = RunStore(str(tmp_path)), set()
    contents = [bytes([65 + i]) * 200_000 for i in range(4)]
    store.write("x", contents[0])

    def work(number: int) -> None:
        for _ in range(20):
            if number < 3:
                store.write("x", contents[number])
            else:
                seen.add(store.read("x"))

    _together(work, 6)
    assert seen <= set(contents)


def _together(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
