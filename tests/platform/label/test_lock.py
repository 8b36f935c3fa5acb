"""Two drivers never work in one folder unnoticed, and a dead one stops nobody."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from d2det_platform.label.layout import LOCK
from d2det_platform.label.lock import Lock, LockedError
from d2det_platform.store import RunStore


def test_a_second_driver_is_refused_by_name(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    with Lock(store, timeout_s=5), pytest.raises(LockedError, match="labelled by process"):
        Lock(store, timeout_s=5).__enter__()
    with Lock(store, timeout_s=5):
        pass
    assert not store.exists(LOCK)


def test_the_lock_of_a_killed_process_is_taken_at_once(tmp_path: Path) -> None:
    code = (
        "import os,sys; from d2det_platform.store import RunStore;"
        "from d2det_platform.label.lock import Lock;"
        "Lock(RunStore(sys.argv[1]), timeout_s=1000).__enter__(); os.kill(os.getpid(), 9)"
    )
    dead = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert dead.returncode == -9
    store = RunStore(str(tmp_path))
    assert store.exists(LOCK)
    with Lock(store, timeout_s=1000):
        pass


@pytest.mark.parametrize("alive", [False, True])
def test_the_lock_of_another_machine_is_taken_when_it_falls_silent(
    tmp_path: Path, alive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(str(tmp_path))
    with Lock(store, timeout_s=0.6 if alive else 1000):
        monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
        second = Lock(store, timeout_s=1.5)
        if alive:
            with pytest.raises(LockedError):
                second.__enter__()
        else:
            with second:
                assert json.loads(store.read(LOCK))["host"] == "elsewhere"
