"""The whole story without Ray: a detector that knows nothing is scored, labels, and is asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from d2det.checkpoints.weights import load_detector, save_weights
from d2det.config import InputConfig, Preset
from d2det.data.synthetic import CATEGORIES, write_dataset
from d2det.inference.decode import decode_image
from d2det.inference.predictor import Predictor
from d2det.inference.results import image_row
from d2det_platform import cli
from d2det_platform.demo import run
from d2det_platform.demo.data import of_folder
from d2det_platform.demo.run import DemoOptions, demonstrate
from d2det_platform.label import command
from d2det_platform.label.engine import LocalEngine
from d2det_platform.store import RunStore
from tests.d2det.models.small import CONFIG, small_detector


@pytest.fixture
def options(tmp_path: Path) -> DemoOptions:
    """Options of a demonstration whose training was done before."""
    for split, count in (("train", 4), ("val", 3)):
        write_dataset(tmp_path / "mine", split=split, num_images=count, size=(96, 128))
    options = DemoOptions(data=tmp_path / "mine", out=tmp_path / "out folder", epochs=1)
    data = of_folder(tmp_path / "mine", options.out / "mine" / "data")
    trained = options.out / "mine" / run._digest(run.training_flags(data, options)) / "train"
    (trained / "report").mkdir(parents=True)
    (trained / "report" / "training.png").write_bytes(b"")
    (trained / "config.json").write_text(json.dumps({"model": CONFIG.model_dump()}))
    config = CONFIG.model_copy(update={"num_classes": len(CATEGORIES)})
    preset = Preset(
        name="small", summary="", model=config, input=InputConfig(short_side=96, long_side=128)
    )
    weights = trained / "best.safetensors"
    save_weights(weights, small_detector(config), preset=preset, categories=CATEGORIES)
    return options


class Answering(BaseHTTPRequestHandler):
    """Answers as the endpoint does, from a predictor that the server holds."""

    def do_POST(self) -> None:
        predictor: Predictor = self.server.predictor  # type: ignore[attr-defined]
        picture = decode_image(self.rfile.read(int(self.headers["Content-Length"])))
        found = predictor.predict([picture])[0]
        row = image_row("image", found, predictor.categories)
        body = json.dumps({"images": [row.model_dump(mode="json")]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def answering(*args: object) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Answering)
    server.predictor = Predictor(load_detector(Path(str(args[1]))))  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_the_story_is_told_to_its_end_and_leaves_what_it_lists(
    options: DemoOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    ran: list[str] = []

    def here(story: Any, *args: object) -> None:
        ran.append(str(args[0]))
        assert cli.main([str(arg) for arg in args]) == 0

    monkeypatch.setattr(run, "run", here)
    monkeypatch.setattr(run, "endpoint", answering)
    monkeypatch.setattr(command, "_ray_engine", lambda url: LocalEngine(RunStore(url)))
    assert demonstrate(options) == 0
    told = capsys.readouterr().out
    assert ran == ["evaluate", "label"]
    assert "damaged.jpg: truncated" in told
    assert "scene.tif: " in told
    assert "the bulk job found the same, boxes at most" in told

    (listed,) = told.split("Open:")[1:]
    paths = [Path(line.split("  ")[1]) for line in listed.splitlines() if line.startswith("  ")]
    assert {path.name for path in paths} >= {"scene.jpg", "run_card.html", "labels.geojson"}
    assert all(path.exists() for path in paths)

    assert demonstrate(options) == 0
    again = capsys.readouterr()
    assert "nothing was predicted" in again.err
    assert "bbox/AP " in again.out
