"""`d2det serve`: the endpoint on this machine until Ctrl-C; `d2det serve-key`: a key for it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import tyro
from pydantic import Field

from d2det.config import Config
from d2det_platform.serve.auth import new_key, read_keys
from d2det_platform.serve.local import (
    deploy,
    is_loopback,
    refuse_taken_port,
    serving,
    starts_cluster,
)
from d2det_platform.serve.model import describe
from d2det_platform.serve.options import ServeCommand, ServeOptions


class KeyCommand(Config):
    """Makes an API key: prints it once and adds its digest to the keys file.

    Example: d2det serve-key alice --keys keys.txt
    """

    name: tyro.conf.Positional[str]
    """Whose key it is; it appears in logs."""
    keys: Path = Field()
    """File of keys; it is made where there is none."""


def run(options: ServeCommand) -> int:
    """Serves until Ctrl-C or SIGTERM and returns the exit code.

    Raises:
        ValueError: No such weights or keys, a taken port, or an endpoint open to everybody.
    """
    refuse_early(options)
    values = options.model_dump(exclude={"host", "port"})
    stop = threading.Event()
    print("starting; a detector is loaded and warmed up ...", file=sys.stderr, flush=True)
    with serving(host=options.host, port=options.port) as address:
        _on_signals(_interrupt)
        deploy(ServeOptions(**values))
        _on_signals(lambda *_: stop.set())
        print(f"ready: {address} (a page to try it, /openapi.json, Ctrl-C to stop)", flush=True)
        stop.wait()
        print("stopping ...", file=sys.stderr, flush=True)
    return 0


def _on_signals(handler: Callable[..., None]) -> None:
    """Sets what Ctrl-C and SIGTERM do. Ray's own handler aborts, and what a shell starts in the
    background ignores Ctrl-C: both would leave processes behind."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def refuse_early(options: ServeCommand) -> None:
    """Looks at everything that can be wrong before anything starts.

    Raises:
        ValueError: With what is wrong and what to do.
    """
    describe(options.weights, options.model, options.name)
    if options.keys is not None:
        read_keys(options.keys)
    if not is_loopback(options.host):
        if options.keys is None:
            raise ValueError(
                f"{options.host} can be reached from outside: make a key with "
                "`d2det serve-key NAME --keys FILE` and give --keys FILE"
            )
        if os.environ.get("RAY_AUTH_MODE", "token") != "token":
            raise ValueError(
                f"{options.host} can be reached from outside and Ray's token is off, so anybody "
                "could run code here: unset RAY_AUTH_MODE"
            )
    if starts_cluster():
        refuse_taken_port(options.host, options.port)


def run_key(options: KeyCommand) -> int:
    """Makes a key and returns the exit code.

    Raises:
        ValueError: The name is taken or has odd characters, or the file is no keys file.
    """
    key, line = new_key(options.name)
    has_keys = options.keys.exists() and options.keys.stat().st_size
    if has_keys and options.name in read_keys(options.keys):
        raise ValueError(f"{options.keys} has a key {options.name!r} already")
    descriptor = os.open(options.keys, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(line + "\n")
    print(key)
    return 0
