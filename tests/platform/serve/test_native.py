"""The native API: what it answers to good and to bad requests."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from pycocotools.coco import COCO

from d2det_platform.serve.limits import Limits
from d2det_platform.serve.options import Batching
from tests.platform.serve.endpoint import jpeg, options, quadrants, serving

Check = Callable[[httpx.AsyncClient], Awaitable[None]]


def in_endpoint(check: Check, **given: Any) -> None:
    async def run() -> None:
        async with serving(**given) as http:
            await check(http)

    asyncio.run(run())


def is_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Checks that an answer is a whole problem, and returns it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert {"type", "title", "detail", "instance", "code", "status"} <= body.keys()
    assert (body["status"], body["code"]) == (status, code)
    assert body["instance"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    return body


def test_a_raw_picture_gives_one_row_with_boxes_in_its_pixels() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        answer = await http.post("/v1/detect?file_name=a.jpg", content=jpeg(40, 60))
        assert answer.status_code == 200, answer.text
        body = answer.json()
        (row,) = body["images"]
        assert (row["file_name"], row["width"], row["height"]) == ("a.jpg", 60, 40)
        assert row["detections"][0] == {
            "bbox": [0, 0, 30, 20],
            "score": 0.9,
            "label": "ship",
            "category_id": 3,
        }
        assert row["truncated"] is False
        assert set(row["timing_ms"]) == {"queue", "decode", "infer", "post", "batch"}
        assert body["request_id"] == answer.headers["x-request-id"]

    in_endpoint(check)


def test_several_pictures_stand_for_themselves_in_order() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        files = [
            ("file", ("a.jpg", jpeg(40, 60))),
            ("file", ("b.txt", b"hello")),
            ("file", ("c.png", cv2.imencode(".png", np.zeros((9, 8, 3), np.uint8))[1].tobytes())),
        ]
        answer = await http.post("/v1/detect", files=files)
        rows = answer.json()["images"]
        assert [(r["file_name"], r["width"]) for r in rows] == [
            ("a.jpg", 60),
            ("b.txt", None),
            ("c.png", 8),
        ]
        assert rows[1]["error"]["reason"] == "not_image"
        assert rows[1]["detections"] == []
        none = await http.post("/v1/detect", files=[files[1], files[1]])
        assert len(is_problem(none, 415, "not_image")["pictures"]) == 2

    in_endpoint(check)


def test_json_with_base64_equals_the_raw_body() -> None:
    import base64

    async def check(http: httpx.AsyncClient) -> None:
        data = jpeg(40, 60)
        text = base64.b64encode(data).decode()
        raw = await http.post("/v1/detect", content=data)
        for entry in (text, f"data:image/jpeg;base64,{text}"):
            answer = await http.post("/v1/detect", json={"image": {"b64": entry}})
            assert answer.json()["images"][0]["detections"] == raw.json()["images"][0]["detections"]

    in_endpoint(check)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_bodies_are_inflated(encoding: str) -> None:
    import zlib

    async def check(http: httpx.AsyncClient) -> None:
        data = jpeg(40, 60)
        packed = gzip.compress(data) if encoding == "gzip" else zlib.compress(data)
        answer = await http.post(
            "/v1/detect", content=packed, headers={"Content-Encoding": encoding}
        )
        assert answer.status_code == 200

    in_endpoint(check)


def test_what_is_asked_for_is_a_cut_of_the_full_result() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        async def labels(query: str) -> tuple[list[str], bool]:
            answer = await http.post(f"/v1/detect?{query}", content=jpeg())
            (row,) = answer.json()["images"]
            return [found["label"] for found in row["detections"]], row["truncated"]

        assert await labels("") == (["ship", "plane"], False)
        assert await labels("score_threshold=0.6") == (["ship"], False)
        assert await labels("max_detections=1") == (["ship"], True)
        assert await labels("classes=plane") == (["plane"], False)
        assert await labels("classes=plane,ship&classes=ship") == (["ship", "plane"], False)

    in_endpoint(check)


def test_the_coco_form_is_what_pycocotools_loads() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        files = [("file", ("a.jpg", jpeg(40, 60))), ("file", ("b.jpg", jpeg(30, 20)))]
        answer = await http.post("/v1/detect?format=coco&image_id=7", files=files)
        truth = COCO()
        truth.dataset = {
            "images": [{"id": 7}, {"id": 8}],
            "annotations": [],
            "categories": [{"id": 3, "name": "ship"}, {"id": 7, "name": "plane"}],
        }
        truth.createIndex()
        loaded = truth.loadRes(answer.json())
        first = loaded.loadAnns(loaded.getAnnIds(imgIds=[7]))[0]
        assert first["bbox"] == [0, 0, 30, 20]
        assert len(loaded.getAnnIds(imgIds=[8])) == 2

    in_endpoint(check)


def test_the_other_forms_hold_the_same_boxes() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        async def ask(form: str) -> Any:
            return (await http.post(f"/v1/detect?format={form}", content=jpeg(40, 60))).json()

        collection = await ask("geojson")
        assert collection["type"] == "FeatureCollection"
        ring = collection["features"][0]["geometry"]["coordinates"][0]
        assert ring[0] == ring[-1] == [0, 0]
        assert ring[2] == [30, 20]
        inferred = await ask("roboflow")
        assert inferred["image"] == {"width": 60, "height": 40}
        first = inferred["predictions"][0]
        assert (first["x"], first["y"], first["width"], first["height"]) == (15, 10, 30, 20)
        (prediction,) = await ask("labelstudio")
        value = prediction["result"][0]["value"]
        assert (value["x"], value["y"], value["width"], value["height"]) == (0, 0, 50, 50)
        assert value["rectanglelabels"] == ["ship"]

    in_endpoint(check)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("score_treshold=0.5", "did you mean 'score_threshold'"),
        ("score_threshold=1.5", "less than or equal to 1"),
        ("score_threshold=nan", "score_threshold"),
        ("max_detections=0", "max_detections"),
        ("max_detections=1001", "max_detections may be 1000"),
        ("classes=shop", "did you mean 'ship'"),
        ("format=xml", "format"),
        ("tile=100", "tile"),
        ("masks=perhaps", "masks"),
    ],
)
def test_parameters_that_make_no_sense_are_refused_by_name(query: str, words: str) -> None:
    async def check(http: httpx.AsyncClient) -> None:
        answer = await http.post(f"/v1/detect?{query}", content=jpeg())
        assert words in is_problem(answer, 422, "invalid_parameter")["detail"]

    in_endpoint(check)


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"", {}, 422, "empty"),
        (b"hello", {}, 415, "not_image"),
        (b"GIF89a" + bytes(20), {}, 415, "unsupported_format"),
        (jpeg()[:-20], {}, 422, "truncated"),
        (jpeg(), {"Content-Type": "text/html"}, 415, "unsupported_media_type"),
        (jpeg(), {"Content-Encoding": "br"}, 415, "unsupported_media_type"),
        (b"not gzip", {"Content-Encoding": "gzip"}, 400, "malformed"),
        (gzip.compress(jpeg())[:-9], {"Content-Encoding": "gzip"}, 400, "malformed"),
        (b"{", {"Content-Type": "application/json"}, 400, "malformed"),
        (b"[]", {"Content-Type": "application/json"}, 422, "invalid_parameter"),
        (b'{"image":{}}', {"Content-Type": "application/json"}, 422, "invalid_parameter"),
        (
            b'{"image":{"b64":"!"}}',
            {"Content-Type": "application/json"},
            422,
            "invalid_parameter",
        ),
        (
            b'{"image":{"url":"https://a.example/b.jpg"}}',
            {"Content-Type": "application/json"},
            422,
            "url_not_allowed",
        ),
        (b"x", {"Content-Type": "multipart/form-data"}, 400, "malformed"),
        (b"x", {"Content-Type": "multipart/form-data; boundary=b"}, 400, "malformed"),
        (
            b"--b--\r\n",
            {"Content-Type": "multipart/form-data; boundary=b"},
            422,
            "invalid_parameter",
        ),
        (jpeg(), {"X-Request-Timeout-Seconds": "-1"}, 400, "malformed"),
        (jpeg(), {"X-Request-Timeout-Seconds": "soon"}, 400, "malformed"),
    ],
)
def test_bodies_that_cannot_be_used(
    content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    async def check(http: httpx.AsyncClient) -> None:
        is_problem(await http.post("/v1/detect", content=content, headers=headers), status, code)
        assert (await http.post("/v1/detect", content=jpeg())).status_code == 200

    in_endpoint(check)


def test_bodies_over_the_limit_are_refused_however_they_come() -> None:
    limit = 10_000
    given = options(limits=Limits(max_body_bytes=limit))

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(1000)

    async def check(http: httpx.AsyncClient) -> None:
        for content, headers in (
            (bytes(limit + 1), {}),
            (chunks(), {}),
            (gzip.compress(bytes(50 * limit)), {"Content-Encoding": "gzip"}),
        ):
            answer = await http.post("/v1/detect", content=content, headers=headers)
            assert is_problem(answer, 413, "too_large")["limit"] == limit
            assert answer.headers["connection"] == "close"
        assert http.service.intake.held == 0  # type: ignore[attr-defined]

    in_endpoint(check, given=given)


def test_a_body_that_trickles_is_given_up() -> None:
    async def trickle() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x"
            await asyncio.sleep(0.05)

    async def check(http: httpx.AsyncClient) -> None:
        is_problem(await http.post("/v1/detect", content=trickle()), 408, "slow_body")

    in_endpoint(check, given=options(limits=Limits(body_timeout_s=0.2)))


def test_pictures_over_a_limit_are_refused_by_their_header() -> None:
    bomb = cv2.imencode(".png", np.zeros((1000, 1000), np.uint8))[1].tobytes()

    async def check(http: httpx.AsyncClient) -> None:
        is_problem(await http.post("/v1/detect", content=bomb), 422, "too_many_pixels")

    in_endpoint(check, given=options(limits=Limits(max_pixels=999_999)))


def test_too_many_pictures_are_refused() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        files = [("file", (f"{i}.jpg", jpeg())) for i in range(3)]
        answer = await http.post("/v1/detect", files=files)
        assert is_problem(answer, 422, "too_many_pictures")["limit"] == 2
        many = {"images": [{"b64": "aaaa"}] * 3}
        is_problem(await http.post("/v1/detect", json=many), 422, "too_many_pictures")

    in_endpoint(check, given=options(limits=Limits(max_pictures=2)))


def test_a_full_queue_is_429_with_retry_after() -> None:
    import time

    def slow(images: list) -> list:
        time.sleep(0.2)
        return quadrants(images)

    async def check(http: httpx.AsyncClient) -> None:
        asked = [http.post("/v1/detect", content=jpeg()) for _ in range(8)]
        answers = await asyncio.gather(*asked)
        good = [a for a in answers if a.status_code == 200]
        refused = [a for a in answers if a.status_code != 200]
        assert len(good) == 2
        for answer in refused:
            is_problem(answer, 429, "busy")
            assert int(answer.headers["retry-after"]) >= 1

    batching = Batching(max_pictures=1, calls_per_replica=1, queued_calls=1)
    in_endpoint(check, predict=slow, given=options(batching=batching))


def test_what_takes_too_long_is_504_in_the_clients_own_time() -> None:
    import time

    def slow(images: list) -> list:
        time.sleep(0.5)
        return []

    async def check(http: httpx.AsyncClient) -> None:
        answer = await http.post(
            "/v1/detect", content=jpeg(), headers={"X-Request-Timeout-Seconds": "0.1"}
        )
        is_problem(answer, 504, "timeout")

    in_endpoint(check, predict=slow)


def test_a_model_that_fails_on_one_picture_fails_for_that_one() -> None:
    def fussy(images: list) -> list:
        if any(image.shape[0] == 13 for image in images):
            raise RuntimeError("secret path /weights")
        return quadrants(images)

    async def check(http: httpx.AsyncClient) -> None:
        answers = await asyncio.gather(
            *(http.post("/v1/detect", content=jpeg(h, 20)) for h in (12, 13, 14, 15))
        )
        assert [a.status_code for a in answers] == [200, 500, 200, 200]
        assert "secret" not in is_problem(answers[1], 500, "internal")["detail"]

    in_endpoint(check, predict=fussy)


def test_unknown_paths_and_methods_are_problems_too() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        is_problem(await http.get("/v1/nothing"), 404, "not_found")
        wrong = await http.get("/v1/detect")
        is_problem(wrong, 405, "method_not_allowed")
        assert wrong.headers["allow"] == "POST"

    in_endpoint(check)


def test_the_model_states_itself_and_every_limit() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        body = (await http.get("/v1/model")).json()
        assert body["categories"][0] == {"id": 3, "name": "ship"}
        assert set(body["limits"]) == set(Limits.model_fields)

    in_endpoint(check)


def test_readiness_is_that_of_the_detector_and_life_is_not() -> None:
    is_ready = False

    async def ready() -> bool:
        return is_ready

    async def check(http: httpx.AsyncClient) -> None:
        nonlocal is_ready
        answer = await http.get("/readyz")
        is_problem(answer, 503, "unavailable")
        assert "retry-after" in answer.headers
        assert (await http.get("/healthz")).status_code == 200
        is_ready = True
        assert (await http.get("/readyz")).status_code == 200

    in_endpoint(check, ready=ready)


def test_a_request_id_comes_back_and_an_odd_one_does_not() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        answer = await http.get("/healthz", headers={"X-Request-ID": "trace-17"})
        assert answer.headers["x-request-id"] == "trace-17"
        odd = await http.get("/healthz", headers={"X-Request-ID": "a b\tc"})
        assert odd.headers["x-request-id"] != "a b\tc"

    in_endpoint(check)


def test_the_description_is_whole_and_its_references_resolve() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        description = (await http.get("/openapi.json")).json()
        text = json.dumps(description)
        known = {f"#/components/schemas/{n}" for n in description["components"]["schemas"]}
        used = {part.split('"')[0] for part in text.split('"$ref": "')[1:]}
        assert used <= known
        body = description["paths"]["/v1/detect"]["post"]["requestBody"]["content"]
        assert {"image/jpeg", "multipart/form-data", "application/json"} <= body.keys()

    in_endpoint(check)


def test_a_client_that_leaves_costs_no_inference() -> None:
    seen: list[int] = []
    go = threading.Event()

    def held(images: list) -> list:
        seen.append(len(images))
        go.wait(30)
        return quadrants(images)

    async def check(http: httpx.AsyncClient) -> None:
        first = asyncio.create_task(http.post("/v1/detect", content=jpeg()))
        while not seen:
            await asyncio.sleep(0.01)
        gone = [asyncio.create_task(http.post("/v1/detect", content=jpeg())) for _ in range(5)]
        await asyncio.sleep(0.1)
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        go.set()
        assert (await first).status_code == 200
        assert (await http.post("/v1/detect", content=jpeg())).status_code == 200
        assert seen == [1, 1]

    in_endpoint(check, predict=held)
