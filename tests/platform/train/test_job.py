"""`ray job submit` to a cluster with a token, as a person does it; minutes long."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.platform.train.group import SMALL
from tests.shared import ROOT, shared_dir

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

RAY = Path(sys.executable).with_name("ray")
START_S = 120.0


@dataclass
class Head:
    """A cluster started by `ray start --head` with a token."""

    address: str
    environment: dict[str, str]

    def submit(self, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Submits jobs/train_coco.py under the id `name` and returns at once.

        A cluster that has just started may have no agent yet that takes jobs.
        """
        command = [
            RAY, "job", "submit", "--no-wait", "--submission-id", name, "--working-dir", ROOT,
            "--runtime-env", ROOT / "deploy/runtime_env.yaml",
            "--", "python", "jobs/train_coco.py", *arguments,
        ]  # fmt: skip
        deadline = time.monotonic() + START_S
        while (done := self.run(command)).returncode and time.monotonic() < deadline:
            assert "No available agent" in done.stderr, done.stderr
            time.sleep(3)
        return done

    def run(self, command: list[Any]) -> subprocess.CompletedProcess[str]:
        """Runs a command as the owner of the token."""
        words = [str(word) for word in command]
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, cwd=ROOT)

    def status(self, name: str) -> str:
        """The state of a job."""
        return self.run([RAY, "job", "status", name]).stdout

    def wait(self, name: str, *, patience_s: float = 900) -> str:
        """Waits until a job has ended, and returns its log."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            status = self.status(name).lower()
            if any(word in status for word in ("succeeded", "failed", "stopped")):
                log = self.run([RAY, "job", "logs", name]).stdout
                assert "succeeded" in status, log[-4000:]
                return log
            time.sleep(2)
        raise AssertionError(f"job {name} does not end: {self.status(name)}")


def free_ports(count: int) -> list[int]:
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [holder.getsockname()[1] for holder in holders]
    for holder in holders:
        holder.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    port, dashboard, client, agent = free_ports(4)  # another cluster may run on this machine
    address = f"http://127.0.0.1:{dashboard}"
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_API_SERVER_ADDRESS": address,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "120",
        "RAY_RUNTIME_ENV_IGNORE_GITIGNORE": "1",
        # `python` of a job is the first in the path of the cluster.
        "PATH": os.pathsep.join((str(RAY.parent), os.environ["PATH"])),
    }
    environment.pop("RAY_ADDRESS", None)
    command = [
        RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
        f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}",
        "--object-store-memory=150000000", f"--temp-dir=/tmp/ray-{port}",
    ]  # fmt: skip
    log = (tmp_path_factory.mktemp("head") / "log").open("w")
    process = subprocess.Popen(
        [str(word) for word in command], env=environment, stdout=log, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + START_S
    while anonymous_status(address) is None:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.5)
    yield Head(address, environment)
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def anonymous_status(address: str) -> int | None:
    """The HTTP status of an anonymous submission; None while nobody listens."""
    request = urllib.request.Request(
        f"{address}/api/jobs/", data=b'{"entrypoint": "id"}', method="POST"
    )
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def test_an_anonymous_submission_is_refused(head: Head) -> None:
    assert anonymous_status(head.address) == 401


def test_a_job_that_is_stopped_and_resubmitted_ends_with_the_metrics_of_an_undisturbed_one(
    head: Head, tmp_path: Path
) -> None:
    data = shared_dir("data", "nwpu_vhr10")
    (tmp_path / "small.yaml").write_text(SMALL)
    common = [
        "--config", tmp_path / "small.yaml", "--storage", tmp_path / "runs",
        "--data.train-images", data / "images",
        "--data.train-annotations", data / "instances_mini_train.json",
        "--data.val-images", data / "images",
        "--data.val-annotations", data / "instances_mini_val.json",
        "--train.epochs", 3, "--cluster.workers", 2, "--cluster.shares", "equal",
        "--evaluate-on", "workers",
    ]  # fmt: skip
    assert head.submit("whole", *common, "--name", "whole").returncode == 0
    head.wait("whole")
    assert head.submit("first", *common, "--name", "parts").returncode == 0
    run = tmp_path / "runs" / "parts"
    while not list(run.glob("checkpoints/*/manifest.json")):
        assert "failed" not in head.status("first").lower()
        time.sleep(0.5)
    head.run([RAY, "job", "stop", "first"])
    outcomes = json.loads((run / "run.json").read_text()).get("outcomes", [])
    print("stopped:", outcomes)
    assert head.submit("second", *common, "--name", "parts").returncode == 0
    log = head.wait("second")
    assert "report" in log
    whole, parts = (rows_of(tmp_path / "runs" / name) for name in ("whole", "parts"))
    assert [row["step"] for row in parts if "loss" in row] == list(range(1, 25))
    assert metrics_of(parts) == metrics_of(whole)
    assert [row["loss"] for row in parts if "loss" in row] == [
        row["loss"] for row in whole if "loss" in row
    ]


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def metrics_of(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The evaluations, without how fast they were."""
    found = [row["metrics"] for row in rows if "metrics" in row]
    return [{k: v for k, v in metrics.items() if k != "images_per_s"} for metrics in found]
