"""What labelling costs beside predicting: speed against a hand-written loop, rows, scenes, merging.

    python benchmarks/label.py speed        # one worker on Ray against a loop with decode-ahead
    python benchmarks/label.py rows         # a million rows: planning and bookkeeping
    python benchmarks/label.py scene        # a 30 000 x 30 000 GeoTIFF on one worker
    python benchmarks/label.py merge        # 100 000 detections of one scene

Each prints its figures and writes benchmarks/results/label_NAME.json. `speed` takes --weights for
the real network; without, a model that sleeps 5 ms a picture.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from d2det.inference.decode import read_image
from d2det.inference.merge import merge_windows
from d2det.inference.predictor import Predictor
from d2det.inference.windows import Window, WindowDetections, cut_windows
from d2det.structures import Detections

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results")
COCO_SIZE = (480, 640)
SLEEP_S = 0.005


def one_box(image: NDArray[np.uint8]) -> Detections:
    """A box whose place follows the picture."""
    height, width = image.shape[:2]
    score = float(image[::7, ::7].mean()) / 255
    return Detections(
        boxes=torch.tensor([[width * 0.1, height * 0.2, width * 0.5, height * (0.3 + score / 2)]]),
        scores=torch.tensor([score]),
        labels=torch.tensor([0]),
        size=(height, width),
    )


def null_model(images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
    """Finds a box in each picture at once."""
    return [one_box(image) for image in images]


def sleep_model(images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
    """Finds a box in each picture after 5 ms a picture, as a GPU would that is waited for."""
    time.sleep(SLEEP_S * len(images))
    return [one_box(image) for image in images]


def empty_model(images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
    """Finds nothing; for scenes."""
    empty = torch.empty(0)
    return [
        Detections(empty.reshape(0, 4), empty, empty.long(), (i.shape[0], i.shape[1]))
        for i in images
    ]


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Pictures a second of one worker and of a loop, each after its start-up, taking turns."""
    with tempfile.TemporaryDirectory() as folder:
        lake = _coco_like_lake(Path(folder) / "lake", options.pictures)
        files = sorted(lake.iterdir())
        rounds = []
        for number in range(options.rounds):
            loop = _loop(files, options.weights)
            ours = _label(lake, Path(folder) / f"out{number}", options.weights)
            rounds.append({"loop": loop, **ours, "ratio": ours["pictures_s"] / loop})
            print(rounds[-1], flush=True)
    ratios = sorted(one["ratio"] for one in rounds)
    return {
        "pictures": options.pictures,
        "model": options.weights or "sleeps 5 ms a picture",
        "rounds": rounds,
        "median ratio": ratios[len(ratios) // 2],
    }


def _coco_like_lake(folder: Path, count: int) -> Path:
    """JPEGs of COCO's size and weight (about 100 kB), some upright."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        height, width = COCO_SIZE if number % 3 else COCO_SIZE[::-1]
        small = generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
        noise = generator.integers(-12, 13, image.shape, dtype=np.int16)
        image = np.clip(image.astype(np.int16) + noise, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number:06d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 85])
    return folder


def _loop(files: Sequence[Path], weights: str) -> float:
    """Pictures a second of the obvious program: threads decode ahead, results go into one file."""
    predict: Callable[[Sequence[NDArray[np.uint8]]], list[Detections]] = sleep_model
    batch = 16
    if weights:
        torch.set_num_threads(1)
        predict = Predictor.load(weights).predict
    rows, start = [], time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        for first, images in _ahead(pool, files, batch):
            for path, found in zip(files[first : first + batch], predict(images), strict=True):
                rows.append({"file": str(path), "boxes": found.boxes.tolist()})
    json.dumps(rows)
    return len(files) / (time.perf_counter() - start)


def _ahead(
    pool: ThreadPoolExecutor, files: Sequence[Path], batch: int
) -> Iterator[tuple[int, list[NDArray[np.uint8]]]]:
    """Yields batches of decoded pictures, two of them ahead."""
    starts = range(0, len(files), batch)
    futures = {
        first: [pool.submit(read_image, path) for path in files[first : first + batch]]
        for first in starts[:2]
    }
    for number, first in enumerate(starts):
        if number + 2 < len(starts):
            later = starts[number + 2]
            futures[later] = [pool.submit(read_image, p) for p in files[later : later + batch]]
        yield first, [future.result() for future in futures.pop(first)]


def _label(lake: Path, out: Path, weights: str) -> dict[str, float]:
    """Speed of `d2det label` on one worker of one thread, from its run card."""
    model = ["--weights", weights] if weights else ["--model", "label:sleep_model"]
    flags = ["--work.workers", "1", "1", "--work.cpus-per-worker", "1", "--work.threads", "1"]
    start = time.perf_counter()
    _run("label", lake, "--out", out, *model, *flags, "--output.samples", 0)
    card = json.loads((out / "run_card.json").read_bytes())["speed"]
    return {
        "pictures_s": card["pictures"] / card["seconds"],
        "start_up_s": card["start_up_s"],
        "all_s": round(time.perf_counter() - start, 1),
    }


def rows(options: argparse.Namespace) -> dict[str, Any]:
    """Time and the driver's memory for many rows that all point to a few tiny pictures."""
    found = []
    for count in (options.rows // 10, options.rows):
        code = f"import label; label.drive({count})"
        done = _python(code)
        found.append(json.loads(done.splitlines()[-1]))
        print(found[-1], flush=True)
    return {"runs": found}


def drive(count: int) -> None:
    """Plans and labels `count` rows in this process, and prints what it took."""
    from d2det_platform.label.driver import label_run, plan_run
    from d2det_platform.label.engine import LocalEngine
    from d2det_platform.label.layout import open_run
    from d2det_platform.label.models import describe_model
    from d2det_platform.label.options import LabelOptions
    from d2det_platform.label.progress import Progress
    from d2det_platform.store import RunStore

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        listed = _tiny_lake(root, count)
        options = LabelOptions(
            inputs=(str(listed),),
            out=str(root / "out"),
            model="label:null_model",
            output={"samples": 0},
        )
        store = RunStore(options.out)
        run = open_run(store, options, describe_model(options))
        engine, base = LocalEngine(store), _peak_mb()
        marks = [time.process_time()]
        plan = plan_run(store, run, engine)
        marks.append(time.process_time())
        planned_mb = _peak_mb()
        with _stubbed_units(store, run):
            label_run(store, run, plan, engine, progress=Progress(plan, out=io.StringIO()))
        marks.append(time.process_time())
    plan_s, rest_s = (after - before for before, after in itertools.pairwise(marks))
    print(
        json.dumps(
            {
                "rows": count,
                "plan, CPU ms a row": round(1000 * plan_s / count, 3),
                "stage, commit, export, CPU ms a row": round(1000 * rest_s / count, 3),
                "MB before": base,
                "MB after planning": planned_mb,
                "MB at the end": _peak_mb(),
            }
        )
    )


def scene(options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a worker on scenes of growing size; its decoder holds one window of them."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for side in (options.side // 3, options.side):
            path = _made_scene(Path(folder) / f"{side}.tif", side)
            code = f"import label; label.label_scene({str(path)!r}, {str(path) + '-out'!r})"
            found.append({"side": side, **json.loads(_python(code).splitlines()[-1])})
            print(found[-1], flush=True)
            path.unlink()
    return {"scenes": found}


def label_scene(path: str, out: str) -> None:
    """Labels one scene in this process with a null model and prints peaks."""
    from d2det_platform.label.driver import label_run, plan_run
    from d2det_platform.label.engine import LocalEngine
    from d2det_platform.label.layout import open_run
    from d2det_platform.label.models import describe_model
    from d2det_platform.label.options import LabelOptions
    from d2det_platform.label.progress import Progress
    from d2det_platform.store import RunStore

    options = LabelOptions(
        inputs=(path,), out=out, model="label:null_model", tile=800, output={"samples": 2}
    )
    store = RunStore(options.out)
    run = open_run(store, options, describe_model(options))
    engine, base, start = LocalEngine(store), _peak_mb(), time.perf_counter()
    plan = plan_run(store, run, engine)
    label_run(store, run, plan, engine, progress=Progress(plan, out=io.StringIO()))
    print(
        json.dumps(
            {
                "windows": plan.total("windows"),
                "MB before": base,
                "MB of the worker": _peak_mb(),
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
    )


def merge(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds to merge many detections of a scene, in order and shuffled."""
    torch.set_num_threads(1)
    size, windows, found = (30_000, 30_000), [], []
    generator = np.random.default_rng(0)
    windows = cut_windows(size, tile=800, overlap=200)
    count = options.detections // len(windows) + 1
    found = [WindowDetections(w, _random_detections(generator, w, count, size)) for w in windows]
    times = []
    for _ in range(5):
        start = time.process_time()
        merged = merge_windows(found, size)
        times.append(time.process_time() - start)
    shuffled = [found[i] for i in generator.permutation(len(found))]
    again = merge_windows(shuffled, size)
    same = torch.equal(merged.detections.boxes, again.detections.boxes)
    same &= torch.equal(merged.detections.scores, again.detections.scores)
    return {
        "detections": count * len(windows),
        "objects": len(merged.detections),
        "median s of CPU": round(sorted(times)[2], 3),
        "shuffled is equal": same,
    }


def _random_detections(
    generator: np.random.Generator, window: Window, count: int, size: tuple[int, int]
) -> Detections:
    corner = generator.uniform(0, 760, (count, 2)) + np.array([window.x, window.y])
    boxes = np.concatenate((corner, corner + generator.uniform(8, 40, (count, 2))), 1)
    scores = np.sort(generator.uniform(0.05, 1, count))[::-1].copy()
    return Detections(
        boxes=torch.from_numpy(boxes.astype(np.float32)),
        scores=torch.from_numpy(scores.astype(np.float32)),
        labels=torch.from_numpy(generator.integers(0, 10, count)),
        size=size,
    )


def _tiny_lake(root: Path, count: int) -> Path:
    """A list of `count` pictures, each a link to one of a few files, a thousand in a folder."""
    tiny = cv2.imencode(".png", np.full((8, 8, 3), 99, np.uint8))[1].tobytes()
    source = root / "tiny.png"
    with (root / "list.txt").open("w") as file:
        for number in range(count):
            folder = root / f"{number // 1000:05d}"
            if number % 1000 == 0:
                folder.mkdir()
            path = folder / f"{number % 1000:03d}.png"
            if number % 50_000:
                path.hardlink_to(source)
            else:  # a file may have so many links and not many more
                path.write_bytes(tiny)
                source = path
            file.write(f"{path}\n")
    return root / "list.txt"


class _stubbed_units:  # noqa: N801 - used as a context
    """Pictures need no decoding: what is measured is everything else."""

    def __init__(self, *_: Any) -> None:
        from d2det_platform.label import work

        self._work, self._before = work, work.Decoders

    def __enter__(self) -> None:
        pixels = np.full((8, 8, 3), 99, np.uint8)

        class Stub:
            def __init__(self, *_: Any, **__: Any) -> None:
                pass

            def read(self, requests: Sequence[Any]) -> list[NDArray[np.uint8]]:
                return [pixels] * len(requests)

            def launch(self) -> None:
                pass

            def wait(self) -> None:
                pass

            def close(self) -> None:
                pass

        self._work.Decoders = Stub  # type: ignore[misc, assignment]

    def __exit__(self, *_: object) -> None:
        self._work.Decoders = self._before  # type: ignore[misc]


def _made_scene(path: Path, side: int) -> Path:
    """A GeoTIFF of noise blown up, written block by block."""
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window as Block

    block, generator = 512, np.random.default_rng(0)
    small = generator.integers(0, 256, (3, block // 8, block // 8), dtype=np.uint8)
    tile = small.repeat(8, 1).repeat(8, 2)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=side,
        height=side,
        count=3,
        dtype="uint8",
        crs="EPSG:32632",
        transform=from_origin(500_000, 4_000_000, 0.3, 0.3),
        tiled=True,
        blockxsize=block,
        blockysize=block,
        compress="deflate",
    ) as file:
        for y in range(0, side, block):
            for x in range(0, side, block):
                part = tile[:, : min(block, side - y), : min(block, side - x)]
                file.write(part, window=Block(x, y, part.shape[2], part.shape[1]))
    return path


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _environment() -> dict[str, str]:
    paths = [str(ROOT / "benchmarks"), str(ROOT / "ops"), str(ROOT), str(ROOT / "platform")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def _run(*args: object) -> None:
    command = [sys.executable, "-m", "d2det_platform.cli", *map(str, args)]
    subprocess.run(command, env=_environment(), check=True, stderr=subprocess.DEVNULL)


def _python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=_environment(), check=True, capture_output=True, text=True
    )
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=["speed", "rows", "scene", "merge"])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", default="")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--side", type=int, default=30_000)
    parser.add_argument("--detections", type=int, default=100_000)
    options = parser.parse_args()
    result = {"speed": speed, "rows": rows, "scene": scene, "merge": merge}[options.name](options)
    print(json.dumps(result, indent=1))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"label_{options.name}.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
