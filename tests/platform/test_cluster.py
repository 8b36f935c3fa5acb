"""Where jobs run: local clusters are safe by default, and a space in a path loses no worker."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

import pytest

from d2det_platform import cluster

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, and no token in the environment."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_made_token_is_for_its_owner_alone(home: Path) -> None:
    before = os.umask(0)
    try:
        cluster.ensure_token()
    finally:
        os.umask(before)
    path = home / ".ray/auth_token"
    assert len(path.read_text()) == 64
    assert mode(path) == 0o600
    assert cluster.find_token() == str(path)


def test_a_token_that_others_could_read_is_closed_and_kept(home: Path) -> None:
    path = home / ".ray/auth_token"
    path.parent.mkdir()
    path.write_text("a" * 64)
    path.chmod(0o644)
    cluster.ensure_token()
    assert path.read_text() == "a" * 64
    assert mode(path) == 0o600


def test_a_token_path_of_ones_own_is_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "deep/token"))
    cluster.ensure_token()
    assert mode(home / "deep/token") == 0o600
    assert not (home / ".ray").exists()


def test_without_a_writable_home_the_token_stays_in_memory(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".ray").write_text("in the way")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    cluster.ensure_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.parametrize(
    ("gibibytes", "expected"),
    [
        pytest.param(0.1, cluster.OBJECT_STORE_FLOOR_BYTES, id="floor"),
        pytest.param(2, int(0.6 * 2**30), id="share"),
        pytest.param(512, 2 * 2**30, id="bound"),
    ],
)
def test_the_object_store_is_bounded(gibibytes: float, expected: int) -> None:
    assert cluster.object_store_size(int(gibibytes * 2**30)) == pytest.approx(expected, abs=1)


def environment_at(folder: Path) -> Path:
    """The Python of a new environment without packages."""
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


def prefix_of(executable: str | Path) -> str:
    command = [str(executable), "-c", "import sys; print(sys.prefix)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", ["My Projects", "a;b", "it's", "$HOME"])
def test_paths_that_a_shell_would_split_get_a_plain_link(
    home: Path, tmp_path: Path, name: str
) -> None:
    python = environment_at(tmp_path / name / ".venv")
    plain = cluster.plain_executable(str(python))
    found = subprocess.run(
        ["bash", "-c", f"exec {plain} -c 'import sys; print(sys.prefix)'"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()).samefile(tmp_path / name / ".venv")
    assert cluster.plain_executable(str(python)) == plain


def test_a_plain_path_is_left_alone() -> None:
    assert cluster.plain_executable("/opt/x/.venv/bin/python") == "/opt/x/.venv/bin/python"


def test_a_link_that_points_elsewhere_is_mended(home: Path, tmp_path: Path) -> None:
    python = environment_at(tmp_path / "a b" / ".venv")
    link = Path(cluster.plain_executable(str(python))).parents[1]
    link.unlink()
    link.symlink_to(tmp_path)
    cluster.plain_executable(str(python))
    assert link.samefile(tmp_path / "a b" / ".venv")


def test_no_link_goes_into_a_folder_that_others_can_write(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "open"))
    (tmp_path / "open/d2det").mkdir(parents=True)
    (tmp_path / "open/d2det").chmod(0o777)
    python = environment_at(tmp_path / "a b" / ".venv")
    assert not cluster.plain_executable(str(python)).startswith(str(tmp_path / "open"))
    assert list((tmp_path / "open/d2det").iterdir()) == []


@pytest.mark.ray
def test_a_local_cluster_works_from_a_path_with_a_space(tmp_path: Path) -> None:
    """As `make demo` in "My Projects": workers with a runtime environment start and know where they
    belong, and the token is ours.

    `ray` is imported first, as modules of ours do that connect later.
    """
    python = environment_at(tmp_path / "my projects" / ".venv")
    packages = Path(cluster.__file__).parents[1]  # an editable install is no folder of sys.path
    here = [str(packages), *(path for path in sys.path if Path(path).is_dir())]
    program = """
        import os, sys
        import ray
        from d2det_platform.cluster import connect

        connect(num_cpus=1, object_store_bytes=100_000_000)
        connect()  # harmless

        @ray.remote(runtime_env={"env_vars": {"PLANTED": "yes"}})
        def look():
            own = ray.get_runtime_context().gcs_address
            is_known = os.environ["RAY_ADDRESS"] == own
            return os.environ["PLANTED"], os.environ["RAY_AUTH_MODE"], is_known, sys.prefix

        print(*ray.get(look.remote(), timeout=90), sep="|")
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [str(python), "-c", textwrap.dedent(program)],
        env=clean | {"PYTHONPATH": os.pathsep.join(here), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    planted, auth, is_known, prefix = done.stdout.strip().splitlines()[-1].split("|")
    assert (planted, auth) == ("yes", "token")
    assert is_known == "True"  # which of this machine's clusters the worker belongs to
    assert Path(prefix).samefile(tmp_path / "my projects" / ".venv")
    assert mode(tmp_path / ".ray/auth_token") == 0o600


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_a_cluster_that_is_not_there_is_named_at_once(
    home: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # another test may have a cluster
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = address.format(port=taken.getsockname()[1])
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ConnectionError, match=f"RAY_ADDRESS={address}: .*no token was found"):
            cluster.connect()
