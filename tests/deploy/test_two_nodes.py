"""The guide's cluster of two machines, here as two nodes: its commands run as they stand.

Addresses and buckets are replaced by what is here, and the training is made small.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from d2det.data.synthetic import write_dataset
from tests.deploy.manifests import ROOT
from tests.docs.commands import commands

pytestmark = [pytest.mark.slow, pytest.mark.ray]

GUIDE = ROOT / "docs" / "cluster.md"
SMALL = """
input: {short_side: 96, long_side: 128}
train: {global_batch: 4, epochs: 1, warmup_steps: 2}
model:
  backbone: {fpn_channels: 32}
  roi_sampler: {samples_per_image: 16}
  classification: {hidden: 32}
  regression: {channels: 24, num_convs: 2, norm_groups: 6, max_samples_per_image: 8}
"""


@dataclass(frozen=True)
class Cluster:
    """environment: of a client.  dashboard: address of the job server."""

    environment: dict[str, str]
    dashboard: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_lines() -> list[str]:
    """The two lines of the guide that start a head and another node."""
    text = GUIDE.read_text()
    return re.findall(r"^    RAY_AUTH_MODE=token (ray start .*)$", text, re.M)


def submit_lines() -> list[str]:
    lines = [c.text for c in commands() if c.path == GUIDE and c.text.startswith("ray job submit")]
    return [line.replace(" --runtime-env deploy/runtime_env.yaml", "") for line in lines]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("home")
    token = home / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    port, dashboard = free_port(), free_port()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = clean | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "ops"), str(ROOT), str(ROOT / "platform")]),
    }
    head, other = start_lines()
    small = "--num-cpus=2 --object-store-memory=100000000 --block"
    temporary = Path("/tmp") / f"d2det-{secrets.token_hex(3)}"  # sockets need short paths
    processes = [
        subprocess.Popen(
            shlex.split(head.replace("--port=6379", f"--port={port}"))
            + shlex.split(f"{small} --dashboard-port={dashboard} --temp-dir={temporary}"),
            env=environment,
        )
    ]
    try:
        wait_for(f"http://127.0.0.1:{dashboard}/")
        address = f"{socket.gethostbyname(socket.gethostname())}:{port}"
        processes.append(
            subprocess.Popen(
                shlex.split(other.replace("HEAD:6379", address)) + shlex.split(small),
                env=environment,
            )
        )
        url = f"http://127.0.0.1:{dashboard}"
        yield Cluster(environment | {"RAY_API_SERVER_ADDRESS": url, "RAY_ADDRESS": address}, url)
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(url: str) -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError(url)


def run(cluster: Cluster, line: str) -> str:
    """Runs a line of the guide from the root of the repository and returns what it printed."""
    without = {k: v for k, v in cluster.environment.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        shlex.split(line), env=without, cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bucket")
    write_dataset(folder / "coco", split="train2017", num_images=8, size=(96, 128))
    (folder / "coco" / "annotations" / "instances_train2017.json").rename(
        folder / "coco" / "train.json"
    )
    (folder / "lake").symlink_to(folder / "coco" / "train2017")
    return folder


def test_the_nodes_carry_their_labels(cluster: Cluster) -> None:
    program = "import ray, json; ray.init(log_to_driver=False); print(json.dumps(ray.nodes()))"
    for _ in range(60):  # the second one joins in its own time
        done = subprocess.run(
            [sys.executable, "-c", program], env=cluster.environment, capture_output=True, text=True
        )
        nodes = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else []
        if len(nodes) == 2:
            break
        time.sleep(1)
    assert sorted(node["Labels"]["d2det.io/pool"] for node in nodes) == ["a", "b"]


def test_nobody_submits_without_the_token(cluster: Cluster) -> None:
    body = json.dumps({"entrypoint": "echo never"}).encode()
    request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/", body, method="POST")
    request.add_header("Content-Type", "application/json")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=10)


def test_the_guides_jobs_train_and_label(cluster: Cluster, lake: Path) -> None:
    train, label = (line.replace("s3://bucket", str(lake)) for line in submit_lines())
    config = lake / "small.yaml"
    config.write_text(SMALL)
    run(cluster, train.replace("d2det_r50", "d2det_tiny") + f" --config {config}")
    weights = lake / "runs" / "first" / "last.safetensors"
    assert weights.exists()
    rows = (lake / "runs" / "first" / "metrics.jsonl").read_text().splitlines()
    assert sum("loss" in json.loads(row) for row in rows) == 2

    run(cluster, label.replace("best.safetensors", "last.safetensors") + " --follow-links")
    table = pq.read_table(lake / "labels" / "labels")
    assert table.num_rows == 8
    assert table.column("error").null_count == 8
    assert (lake / "labels" / "_SUCCESS").exists()
