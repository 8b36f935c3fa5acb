"""The endpoint under load, on this machine: overhead, batching, overload, roll-outs, kills.

    python benchmarks/serve.py overhead batching overload rollout kills slow scaling

Without names: the first two. Models are those of `d2det_platform.serve.trial`. Every comparison is
interleaved within one run, for machines are never quiet. Prints tables, writes JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from d2det_platform.serve.local import deploy, free_port, serving
from d2det_platform.serve.options import ServeOptions

HERE = Path(__file__).resolve().parent
ROUNDS = int(os.environ.get("D2DET_BENCH_ROUNDS", "3"))
SECONDS = float(os.environ.get("D2DET_BENCH_SECONDS", "3"))
CONSOLE = Console(width=120)


def main(parts: list[str]) -> None:
    known: dict[str, Callable[[Path], dict[str, Any]]] = {
        "overhead": overhead,
        "batching": batching,
        "overload": overload,
        "scaling": scaling,
        "rollout": rollout,
        "kills": kills,
        "slow": slow,
    }
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.jpg"
        picture.write_bytes(jpeg_of(200_000))
        for part in parts or ["overhead", "batching"]:
            found = known[part](picture)
            (results / f"serve_{part}.json").write_text(json.dumps(found, indent=1))


def jpeg_of(size: int) -> bytes:
    """Returns a 1333 x 800 JPEG of about `size` bytes."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (100, 166, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (1333, 800), interpolation=cv2.INTER_CUBIC).astype(int)
    image = np.clip(image + rng.integers(-12, 12, image.shape), 0, 255).astype(np.uint8)
    for quality in range(95, 10, -5):
        data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(data) <= size:
            return data
    raise RuntimeError("no quality gives so small a file")


def overhead(picture: Path) -> dict[str, Any]:
    """Echo and decode through the whole endpoint, beside plain uvicorn.

    The very app that plain uvicorn runs is measured as a Ray Serve application too: what an
    endpoint that does nothing gets of uvicorn's rate, with HAProxy and the replica beside the
    client on the cores of one machine.
    """
    apps = {
        "together": options("Echo", together=True),
        "split": options("Echo"),
        "decoded": options("Decoded", together=True),
    }
    with endpoint(apps) as address, plain_server() as plain:
        deploy_plain()
        pairs = {
            "nothing on Ray Serve": (f"{address}/plain/echo", f"{plain}/echo", None),
            "echo, together": (f"{address}/together/v1/detect", f"{plain}/echo", 0.5),
            "echo, split": (f"{address}/split/v1/detect", f"{plain}/echo", None),
            "decoded, together": (f"{address}/decoded/v1/detect", f"{plain}/decode", 0.5),
        }
        rows = {}
        for clients in (8, 32, 1):
            for name, (ours, theirs, wanted) in pairs.items():
                if clients != 8 and name not in ("echo, together", "nothing on Ray Serve"):
                    continue
                found = compare(ours, theirs, picture, clients=clients, wanted=wanted)
                rows[f"{name}, {clients} clients"] = found
                CONSOLE.print(f"{name}, {clients} clients: {found['ratio']}x")
    show("the endpoint beside plain uvicorn, 200 kB JPEG", rows)
    return rows


def batching(picture: Path) -> dict[str, Any]:
    """20 ms a batch and 2 ms a picture: batches of 16 beside batches of one."""
    apps = {
        "many": options("Slow", together=True),
        "one": options("Slow", together=True, max_pictures=1),
    }
    rows = {}
    with endpoint(apps) as address:
        for clients, wanted in ((1, None), (8, None), (32, 3.0)):
            found = compare(
                f"{address}/many/v1/detect",
                f"{address}/one/v1/detect",
                picture,
                clients=clients,
                wanted=wanted,
            )
            rows[f"{clients} clients"] = found
            CONSOLE.print(f"{clients} clients: {found['ratio']}x")
    show("batches beside batches of one", rows)
    return rows


def overload(picture: Path) -> dict[str, Any]:
    """Four times the clients that fill it: answers, times and memory."""
    seconds = float(os.environ.get("D2DET_BENCH_OVERLOAD_S", "60"))
    with endpoint({"d2det": options("Slow")}) as address:
        url = f"{address}/d2det/v1/detect"
        load(url, picture, clients=32, seconds=3)
        full = load(url, picture, clients=32, seconds=10)
        memory: list[int] = []
        done = threading.Event()
        watch = threading.Thread(target=_watch_memory, args=(memory, done))
        watch.start()
        over = load(url, picture, clients=128, seconds=seconds, pause=0.05)
        done.set()
        watch.join()
    half = len(memory) // 2
    found = {
        "at capacity": full,
        "overload": over,
        "offered over capacity": _rate(over) / max(full["rate"], 1e-9),
        "p99 over that at capacity": over["p99_ms"] / full["p99_ms"],
        "memory MB, first half": statistics.median(memory[1:half] or [0]) / 1e6,
        "memory MB, second half": statistics.median(memory[half:] or [0]) / 1e6,
    }
    CONSOLE.print_json(json.dumps(found))
    return found


def scaling(picture: Path) -> dict[str, Any]:
    """Replicas over time while load comes and goes: from none to three and back."""
    chosen = options(
        "Slow", min_replicas=0, max_replicas=3, upscale_delay_s=1.0, downscale_delay_s=5.0
    )
    seen: list[tuple[float, int]] = []
    with endpoint({"d2det": chosen}) as address:
        url, start, done = f"{address}/d2det/v1/detect", time.monotonic(), threading.Event()

        def watch() -> None:
            while not done.is_set():
                count = len(replicas("detector"))
                if not seen or seen[-1][1] != count:
                    seen.append((round(time.monotonic() - start, 1), count))
                time.sleep(0.5)

        thread = threading.Thread(target=watch)
        thread.start()
        time.sleep(40)
        cold = load(url, picture, clients=1, seconds=1)
        busy = load(url, picture, clients=64, seconds=45)
        time.sleep(45)
        done.set()
        thread.join()
    found = {"replicas": seen, "first request from zero": cold, "under load": busy}
    CONSOLE.print_json(json.dumps(found))
    return found


def rollout(picture: Path) -> dict[str, Any]:
    """Rolling updates under eight clients: every request must be answered."""
    updates = int(os.environ.get("D2DET_BENCH_UPDATES", "5"))
    with endpoint({"d2det": options("Measured")}) as address, tempfile.TemporaryDirectory() as f:
        pictures, sizes = several(Path(f))
        url = f"{address}/d2det/v1/detect"
        with background_load(url, pictures, sizes) as finish:
            for number in range(updates):
                start = time.monotonic()
                deploy(options("Measured", warm_up_s=number + 1.0), name="d2det", prefix="/d2det")
                CONSOLE.print(f"update {number + 1}: {time.monotonic() - start:.1f} s")
                time.sleep(2)
            found = {"updates": updates, **finish()}
    CONSOLE.print_json(json.dumps(found))
    return found


def kills(picture: Path) -> dict[str, Any]:
    """kill -9 of replicas at random moments under eight clients."""
    times = int(os.environ.get("D2DET_BENCH_KILLS", "5"))
    which = os.environ.get("D2DET_BENCH_KILL", "detector")
    seed = int(os.environ.get("D2DET_BENCH_SEED", time.time() % 10_000))
    moments = random.Random(seed)
    chosen = options("Measured", min_replicas=2, max_replicas=2, ingress_replicas=2)
    with endpoint({"d2det": chosen}) as address, tempfile.TemporaryDirectory() as f:
        pictures, sizes = several(Path(f))
        url = f"{address}/d2det/v1/detect"
        with background_load(url, pictures, sizes) as finish:
            for number in range(times):
                time.sleep(moments.uniform(1, 3))
                alive = replicas(which)
                os.kill(alive[moments.randrange(len(alive))], signal.SIGKILL)
                CONSOLE.print(f"kill {number + 1} of a {which}, seed {seed}")
                _wait_for(lambda: len(replicas(which)) >= 2, 60)
                time.sleep(2)
            found = {"kills": times, "of": which, "seed": seed, **finish()}
    CONSOLE.print_json(json.dumps(found))
    return found


def slow(picture: Path) -> dict[str, Any]:
    """Eight usual clients beside two hundred that send a byte a second."""
    with endpoint({"d2det": options("Slow")}) as address:
        url = f"{address}/d2det/v1/detect"
        load(url, picture, clients=8, seconds=3)
        before = load(url, picture, clients=8, seconds=8)
        with trickling(address, "/d2det/v1/detect", 200):
            during = load(url, picture, clients=8, seconds=8)
    found = {"alone": before, "beside slow ones": during, "kept": during["rate"] / before["rate"]}
    CONSOLE.print_json(json.dumps(found))
    return found


def options(model: str, *, max_pictures: int = 16, warm_up_s: float = 1.0, **scale: Any) -> Any:
    """Options for a trial model that takes next to no reserved resources."""
    return ServeOptions.model_validate(
        {
            "model": f"d2det_platform.serve.trial:{model}",
            "predict": {"batch_pixels": 1_000_000_000},
            "batching": {"max_pictures": max_pictures},
            "scaling": {"cpus": 0.1, "ingress_cpus": 0.1, "health_period_s": 2.0, **scale},
            "warm_up_s": warm_up_s,
        }
    )


@contextlib.contextmanager
def endpoint(apps: dict[str, ServeOptions]) -> Iterator[str]:
    """Runs applications below their names."""
    with serving(host="127.0.0.1", port=free_port()) as address:
        for name, chosen in apps.items():
            deploy(chosen, name=name, prefix=f"/{name}")
        yield address


def deploy_plain() -> None:
    """Puts the app of `plain_server` on Ray Serve, without anything of ours."""
    import plain_server
    from ray import serve

    class Plain:
        """Only what Serve needs."""

    deployment = serve.deployment(
        serve.ingress(plain_server.app)(Plain),
        name="plain",
        max_ongoing_requests=4096,
        ray_actor_options={"num_cpus": 0.1},
        logging_config={"enable_access_log": False},
    )
    serve.run(deployment.bind(), name="plain", route_prefix="/plain")


@contextlib.contextmanager
def plain_server() -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "plain_server:app"]
    command += ["--port", str(port), "--log-level", "error"]
    process = subprocess.Popen(command)
    try:
        _wait_for(lambda: _answers(port), 30)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def compare(
    ours: str, theirs: str, picture: Path, *, clients: int, wanted: float | None
) -> dict[str, Any]:
    """Returns rates and times of both, in turns, and the median ratio of the rates."""
    for url in (ours, theirs):
        load(url, picture, clients=clients, seconds=1)
    a, b = [], []
    for _ in range(ROUNDS):
        a.append(load(ours, picture, clients=clients, seconds=SECONDS))
        b.append(load(theirs, picture, clients=clients, seconds=SECONDS))
    ratio = statistics.median(x["rate"] / max(y["rate"], 1e-9) for x, y in zip(a, b, strict=True))
    return {
        "ours": statistics.median(x["rate"] for x in a),
        "theirs": statistics.median(y["rate"] for y in b),
        "ours_p50_ms": statistics.median(x["p50_ms"] or 0 for x in a),
        "theirs_p50_ms": statistics.median(y["p50_ms"] or 0 for y in b),
        "ratio": round(ratio, 3),
        "wanted": wanted,
        "statuses": [x["statuses"] for x in a],
    }


def load(
    url: str, picture: Path, *, clients: int, seconds: float, pause: float = 0.0
) -> dict[str, Any]:
    """Returns what `load.py` saw, in a process of its own."""
    command = [sys.executable, str(HERE / "load.py"), url, str(picture)]
    command += ["--clients", str(clients), "--seconds", str(seconds), "--pause", str(pause)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)  # type: ignore[no-any-return]


def several(folder: Path) -> tuple[list[Path], list[str]]:
    """Returns pictures of different sizes, and the sizes: an answer tells whose it is."""
    pictures, sizes = [], []
    for number in range(12):
        width, height = 64 + 16 * number, 50 + 7 * number
        path = folder / f"{number}.jpg"
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        path.write_bytes(cv2.imencode(".jpg", noise)[1].tobytes())
        pictures.append(path)
        sizes.append(f"{width}x{height}")
    return pictures, sizes


@contextlib.contextmanager
def background_load(
    url: str, pictures: list[Path], sizes: list[str]
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Keeps eight clients asking; the yielded function ends them and tells what they saw."""
    seconds = float(os.environ.get("D2DET_BENCH_LOAD_S", "600"))
    command = [sys.executable, str(HERE / "load.py"), url, *map(str, pictures)]
    command += ["--clients", "8", "--seconds", str(seconds), "--sizes", *sizes]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)

    def finish() -> dict[str, Any]:
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        return json.loads(process.stdout.read())  # type: ignore[no-any-return]

    try:
        yield finish
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@contextlib.contextmanager
def trickling(address: str, path: str, count: int) -> Iterator[None]:
    """Holds connections that send their body a byte a second."""
    port = int(address.rpartition(":")[2])
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    done = threading.Event()
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]

    def drip() -> None:
        for connection in connections:
            connection.sendall(head.encode())
        while not done.wait(1):
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.send(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    yield
    done.set()
    thread.join()
    for connection in connections:
        connection.close()


def replicas(deployment: str) -> list[int]:
    """Returns the processes of a deployment's replicas, of this endpoint alone."""
    own = os.environ["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"].encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            title = (entry / "cmdline").read_bytes()
            is_one = b"ServeReplica" in title and deployment.encode() in title
            if is_one and own in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def show(title: str, rows: dict[str, dict[str, Any]]) -> None:
    table = Table(
        "case", "ours /s", "theirs /s", "ratio", "wanted", "p50 ms", "theirs", title=title
    )
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['ours']:.0f}",
            f"{row['theirs']:.0f}",
            f"{row['ratio']:.2f}x",
            "" if row["wanted"] is None else f">= {row['wanted']}",
            f"{row['ours_p50_ms']:.2f}",
            f"{row['theirs_p50_ms']:.2f}",
        )
    CONSOLE.print(table)


def _watch_memory(seen: list[int], done: threading.Event) -> None:
    while not done.wait(2):
        total = 0
        for pid in replicas("detector") + replicas("ingress"):
            with contextlib.suppress(OSError, IndexError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                total += pages * os.sysconf("SC_PAGE_SIZE")
        seen.append(total)


def _rate(found: dict[str, Any]) -> float:
    """Requests a second that were made, whatever became of them."""
    good = found["statuses"].get("200", 0)
    return float(sum(found["statuses"].values()) * found["rate"] / max(good, 1))


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("it never happened")
        time.sleep(0.2)


if __name__ == "__main__":
    main(sys.argv[1:])
