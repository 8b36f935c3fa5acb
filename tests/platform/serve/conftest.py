"""One real endpoint for all tests of this folder: `d2det serve` in a process of its own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from d2det.checkpoints.weights import save_weights
from d2det.config import InputConfig, Preset
from d2det.structures import Category
from d2det_platform.serve.local import free_port
from tests.d2det.models.small import CONFIG, small_detector

START_S = 300


@dataclass
class RunningEndpoint:
    """A process of `d2det serve`; key: that opens it."""

    url: str
    key: str
    weights: Path
    process: subprocess.Popen[str]


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    preset = Preset(
        name="small", summary="", model=CONFIG, input=InputConfig(short_side=64, long_side=96)
    )
    categories = tuple(Category(id=10 * k + 1, name=f"class {k}") for k in range(3))
    save_weights(path, small_detector(), preset=preset, categories=categories)
    return path


@pytest.fixture(scope="session")
def running_endpoint(
    small_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningEndpoint]:
    folder = tmp_path_factory.mktemp("serve")
    keys, log = folder / "keys.txt", folder / "serve.log"
    verb = [sys.executable, "-m", "d2det_platform.cli"]
    made = [*verb, "serve-key", "tests", "--keys", str(keys)]
    key = subprocess.run(made, check=True, capture_output=True, text=True).stdout.strip()
    port = free_port()
    command = [*verb, "serve", "--weights", str(small_weights), "--port", str(port)]
    command += ["--keys", str(keys), "--scaling.cpus", "0.5"]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    try:
        line = _first_line(process)
        assert line.startswith("ready"), line + log.read_text()
        yield RunningEndpoint(f"http://127.0.0.1:{port}", key, small_weights, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if select.select([process.stdout], [], [], 1)[0]:
            return process.stdout.readline()
        if process.poll() is not None:
            return ""
    return ""
