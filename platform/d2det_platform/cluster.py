"""The cluster a job runs on: the one that RAY_ADDRESS names, or a safe one of this machine.

Every job connects here, so that all of them start a local cluster alike: dashboard on loopback,
token authentication on with a token that only its owner can read, a bounded object store, nothing
sent anywhere, and no worker lost to a space in the path of the Python environment.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import secrets
import shlex
import socket
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MAX_OBJECT_STORE_BYTES = 2 << 30
"""Bound of a local cluster's object store: jobs pass references and small rows through it."""
OBJECT_STORE_FRACTION = 0.3
"""Share of the machine's memory that the store may take where that is less."""
OBJECT_STORE_FLOOR_BYTES = 80 << 20
"""Ray refuses smaller stores."""
CONNECT_TIMEOUT_S = 20.0
"""How long a cluster may take to accept a connection."""


def connect(
    *,
    num_cpus: int | None = None,
    object_store_bytes: int | None = None,
    has_dashboard: bool = True,
    log_to_driver: bool = True,
) -> None:
    """Connects to the cluster in RAY_ADDRESS, or starts one of this machine; once a process.

    Inside `ray job submit` RAY_ADDRESS is set. A connection that exists already is kept.

    Args:
        num_cpus: of a local cluster; None: all of the machine's.
        object_store_bytes: of a local cluster; None: see `MAX_OBJECT_STORE_BYTES`.
        has_dashboard: of a local cluster; without it Ray Train complains every second.
        log_to_driver: print what workers print.

    Raises:
        ConnectionError: there is no cluster at RAY_ADDRESS, or it does not take our token.
    """
    address = os.environ.get("RAY_ADDRESS", "local")
    is_local = address in ("", "local")
    if is_local or find_token() is not None:
        _authenticate()
    import ray

    if ray.is_initialized():
        return
    if not is_local:
        _join(address, log_to_driver=log_to_driver)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if os.environ["RAY_AUTH_MODE"] == "token":
        ensure_token()
    sys.executable = plain_executable(sys.executable)
    ray.init(
        address="local",
        num_cpus=num_cpus,
        object_store_memory=object_store_bytes or object_store_size(_memory_bytes()),
        include_dashboard=has_dashboard,
        dashboard_host="127.0.0.1",
        log_to_driver=log_to_driver,
        runtime_env=OWN_CLUSTER,
    )


def know_own_cluster() -> None:
    """Tells a worker which cluster it belongs to; every worker of a local one starts with it.

    Queries of Ray's state ask the cluster of this machine that started last. Where that is another
    one, Ray Train does not find its own controller there, takes it for dead, and ends the training
    ("placement group was removed").
    """
    import ray

    os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)


OWN_CLUSTER = {"worker_process_setup_hook": f"{__name__}.{know_own_cluster.__name__}"}
"""Runtime environment in which every worker knows its own cluster."""


def object_store_size(memory_bytes: int) -> int:
    """Returns the bytes of a local cluster's object store on a machine with so much memory."""
    share = int(memory_bytes * OBJECT_STORE_FRACTION)
    return max(OBJECT_STORE_FLOOR_BYTES, min(share, MAX_OBJECT_STORE_BYTES))


def find_token() -> str | None:
    """Returns where Ray would find a token (the name of a variable, or a path), if there is one."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if os.environ.get(name):
            return name
    path = _token_path()
    return str(path) if path.exists() else None


def ensure_token() -> None:
    """Makes sure that there is a token, and that no one else on this machine can read it.

    Ray writes its token file readable for everybody, and the token is full control of the cluster.
    Where the home folder cannot be written, the token lives in this process's environment alone.
    """
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _token_path())
    if path.is_file():
        _close_to_others(path)
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    except OSError as error:
        logger.warning("%s cannot be written (%s); the token is not kept", path, error.strerror)
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def plain_executable(executable: str) -> str:
    """Returns a path of the same Python that a shell takes as one word.

    Ray starts workers that have a runtime environment by `bash -c "exec PYTHON ..."` without
    quotes, so none starts from an environment in "My Projects". A link to the environment, in a
    folder that only its owner can write, has a plain name and finds the same packages.
    """
    if shlex.quote(executable) == executable:
        return executable
    environment = Path(executable).parent.parent
    name = "python-" + hashlib.sha256(os.fsencode(environment)).hexdigest()[:12]
    for folder in _link_folders():
        link = folder / name
        if shlex.quote(str(link)) != str(link):
            continue
        try:
            _owned(folder)
            _point(link, environment)
        except OSError as error:
            logger.debug("no link in %s: %s", folder, error)
            continue
        return str(link / Path(executable).relative_to(environment))
    raise ConnectionError(
        f"Ray cannot start workers from {executable!r}, whose path a shell would split, and no "
        "folder was found for a link to it: set XDG_CACHE_HOME to a writable folder without spaces"
    )


def _authenticate() -> None:
    """Switches token authentication on, unless the person has chosen.

    Ray does so by itself only for clusters that it starts, and reads the variable when it is
    imported, which may have been before.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    if "ray" in sys.modules:
        raylet: Any = importlib.import_module("ray._raylet")
        raylet.Config.initialize("")


def _join(address: str, *, log_to_driver: bool) -> None:
    import ray

    try:
        _knock(address)
        ray.init(address=address, log_to_driver=log_to_driver)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        has = find_token()
        token = f"the token in {has} goes with it" if has else "no token was found to send"
        raise ConnectionError(
            f"RAY_ADDRESS={address}: no cluster took the connection ({token}); look at `ray status`"
            f" there, or unset RAY_ADDRESS to run on this machine: {error}"
        ) from error


def _knock(address: str) -> None:
    """Opens the port at "host:port" once: where nobody listens, Ray waits long and then aborts."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()


def _token_path() -> Path:
    return Path.home() / ".ray" / "auth_token"


def _close_to_others(path: Path) -> None:
    """Takes the rights of group and others off a file of ours."""
    if path.stat().st_uid == os.getuid() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        path.chmod(0o600)


def _memory_bytes() -> int:
    """Memory that this process may use: of the machine, or of its control group."""
    from ray._common.utils import get_system_memory  # the number Ray itself goes by

    return int(get_system_memory())


def _link_folders() -> list[Path]:
    cache = os.environ.get("XDG_CACHE_HOME")
    caches = [Path(cache)] if cache else []
    caches.append(Path.home() / ".cache")
    places = [folder / "d2det" for folder in caches]
    return [*places, Path(tempfile.gettempdir()) / f"d2det-{os.getuid()}"]


def _owned(folder: Path) -> None:
    """Makes the folder, or checks that nobody else could have put a link there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is not a folder that only its owner can write")


def _point(link: Path, target: Path) -> None:
    """Makes `link` point at `target`, replacing it in one step."""
    if link.is_symlink() and link.readlink() == target:
        return
    temporary = link.with_name(f"{link.name}.{os.getpid()}")
    temporary.symlink_to(target)
    temporary.replace(link)
