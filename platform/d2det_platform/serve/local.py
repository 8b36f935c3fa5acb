"""Ray and Serve on this machine for `d2det serve`: start, wait for readiness, stop everything."""

from __future__ import annotations

import ipaddress
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson

from d2det_platform.cluster import connect
from d2det_platform.serve import problems
from d2det_platform.serve.options import ServeOptions

OBJECT_STORE_BYTES = 150_000_000
"""Pictures do not go through the object store."""
_deployed: set[str] = set()
DRAIN_S = "2"
"""On one machine the proxy learns at once of a replica that goes; Ray's default is 30 s."""


@contextmanager
def serving(*, host: str, port: int) -> Iterator[str]:
    """Runs Ray Serve without an application and yields its address.

    On a cluster that RAY_ADDRESS names, Serve may be running for others: only what we deployed is
    taken away in the end, and Serve's own address and environment hold.
    """
    folder = Path(tempfile.mkdtemp(prefix="d2det-serve-"))
    if starts_cluster():
        for name, value in serve_environment(folder).items():
            os.environ.setdefault(name, value)  # what somebody has set holds
    import ray
    from ray import serve

    try:
        connect(object_store_bytes=OBJECT_STORE_BYTES)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port, "keep_alive_timeout_s": 75},
        )
        yield f"http://{'[' + host + ']' if ':' in host else host}:{port}"
    finally:
        if ray.is_initialized():
            if starts_cluster():
                serve.shutdown()
            else:
                for name in _deployed:
                    serve.delete(name)
            ray.shutdown()
        _deployed.clear()
        end_processes_of(folder)
        shutil.rmtree(folder, ignore_errors=True)


def deploy(options: ServeOptions, *, name: str = "d2det", prefix: str = "/") -> None:
    """Deploys the endpoint, or updates it replica by replica, and waits until it is ready."""
    from ray import serve

    from d2det_platform.serve.deployments import build

    _deployed.add(name)
    serve.run(build(options), name=name, route_prefix=prefix)
    _let_the_proxy_answer_alike()


def starts_cluster() -> bool:
    """Returns whether a cluster of this machine is started, rather than one joined."""
    return os.environ.get("RAY_ADDRESS", "local") in ("", "local")


def is_loopback(host: str) -> bool:
    """Returns whether only this machine reaches what listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_taken_port(host: str, port: int) -> None:
    """Raises ValueError where nothing can listen on this address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"cannot listen on {host} port {port}: {error.strerror}; choose another --port"
            ) from None


def free_port() -> int:
    """Returns a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve_environment(folder: Path) -> dict[str, str]:
    """Returns what Ray Serve reads from the environment when it is imported.

    folder: for HAProxy's files.
    """
    return {
        # Requests go from HAProxy straight to the replicas: the default proxy, in Python, passes
        # 200 kB pictures at a tenth of the rate.
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": DRAIN_S,
        # On a busy machine the proxy takes longer to start than Ray's 5 s, after three of which it
        # is killed, and serve.start fails with it.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
        # HAProxy's own files and ports, so that two endpoints on a machine do not meet.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "10",
        # A client that says nothing may hold a connection for so long: Ray's default is an hour.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "960",
        # How often load is reported for autoscaling.
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    }


def end_processes_of(folder: Path) -> None:
    """Ends the processes whose command line names `folder`.

    HAProxy replaces itself by a new process at every change, the last replica's end included; one
    that starts as its supervisor ends would stay for ever.
    """
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            if os.fsencode(folder) in command.read_bytes():
                os.kill(int(command.parent.name), signal.SIGTERM)


def _let_the_proxy_answer_alike() -> None:
    """Replaces what HAProxy says when no replica takes a request: a problem, not a plain 500.

    It reads the file whenever replicas come or go.
    """
    config = os.environ.get("RAY_SERVE_HAPROXY_CONFIG_FILE_LOC")
    if config is None or not (place := Path(config).with_name("500.http")).is_file():
        return
    problem = problems.unavailable("no process takes this request now", retry_after_s=1)
    body = orjson.dumps(problem.body(""))
    headers = {
        "Content-Type": problems.MEDIA_TYPE,
        "Content-Length": str(len(body)),
        "Connection": "close",
        **problem.headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    place.write_bytes(f"HTTP/1.1 503 Service Unavailable\r\n{head}\r\n".encode() + body)
