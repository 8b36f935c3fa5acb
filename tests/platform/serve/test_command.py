"""`d2det serve` as a person runs it."""

from __future__ import annotations

import stat

import cv2
import httpx
import numpy as np
import pytest

from d2det.inference.decode import decode_image
from d2det.inference.predictor import Predictor
from d2det.inference.results import image_row
from d2det_platform import cli
from tests.platform.serve.conftest import RunningEndpoint
from tests.shared import shared_dir


@pytest.mark.ray
def test_the_running_endpoint_equals_the_python_door(running_endpoint: RunningEndpoint) -> None:
    pictures = sorted(shared_dir("data", "coco_subset", "val").glob("*.jpg"))[:8]
    predictor = Predictor.load(running_endpoint.weights)
    headers = {"Authorization": f"Bearer {running_endpoint.key}"}
    with httpx.Client(base_url=running_endpoint.url, headers=headers, timeout=60) as http:
        for path in pictures:
            answer = http.post("/v1/detect", content=path.read_bytes())
            assert answer.status_code == 200, answer.text
            (found,) = predictor.predict([decode_image(path.read_bytes())])
            expected = image_row("", found, predictor.categories)
            (row,) = answer.json()["images"]
            assert [d["label"] for d in row["detections"]] == [d.label for d in expected.detections]
            boxes = [d["bbox"] for d in row["detections"]]
            assert np.allclose(boxes, [d.bbox for d in expected.detections], atol=1e-3)
            assert [d["mask"]["counts"] for d in row["detections"]] == [
                d.mask.counts for d in expected.detections
            ]
        noise = cv2.imencode(".png", np.zeros((20, 30, 3), np.uint8))[1].tobytes()
        assert http.post("/v1/detect", content=noise[:-5]).json()["code"] == "truncated"
        assert http.get("/readyz").status_code == 200


@pytest.mark.ray
def test_a_key_is_needed(running_endpoint: RunningEndpoint) -> None:
    answer = httpx.get(f"{running_endpoint.url}/v1/model", timeout=30)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert httpx.get(f"{running_endpoint.url}/healthz", timeout=30).status_code == 200


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weights", "/no/w.safetensors"], "no weights file at /no/w.safetensors"),
        ([], "either --weights or --model"),
        (["--model", "no.such:thing"], "cannot be imported"),
        (["--model", "json:dumps", "--host", "0.0.0.0"], "d2det serve-key"),
        (["--model", "json:dumps", "--keys", "nowhere.txt"], "cannot be read"),
        (["--model", "json:dumps", "--port", "0"], "port"),
    ],
)
def test_mistakes_are_one_line(arguments, words, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


def test_a_taken_port_is_said_at_once(capsys) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert cli.main(["serve", "--model", "json:dumps", "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err


def test_an_open_endpoint_needs_rays_token_too(capsys, tmp_path, monkeypatch) -> None:
    keys = tmp_path / "keys"
    assert cli.main(["serve-key", "alice", "--keys", str(keys)]) == 0
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    asked = ["serve", "--model", "json:dumps", "--host", "0.0.0.0", "--keys", str(keys)]
    assert cli.main(asked) == 2
    assert "unset RAY_AUTH_MODE" in capsys.readouterr().err
