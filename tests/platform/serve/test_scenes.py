"""Large pictures: progress and parts as they come, then what the windows make together."""

from __future__ import annotations

import asyncio
import json
import time

import httpx

from d2det_platform.serve.limits import Limits
from tests.platform.serve.endpoint import jpeg, options, quadrants, serving
from tests.platform.serve.test_native import in_endpoint, is_problem

QUERY = "tile=128&overlap=20"


def events_of(text: str) -> list[tuple[str, dict]]:
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_events_tell_of_every_window_and_end_with_the_result() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        headers = {"Accept": "text/event-stream"}
        answer = await http.post(f"/v1/scenes?{QUERY}", content=jpeg(200, 300), headers=headers)
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = events_of(answer.text)
        assert events[0] == ("scene", {"width": 300, "height": 200, "windows": 6})
        windows = [data for name, data in events if name == "window"]
        assert [data["done"] for data in windows] == [1, 2, 3, 4, 5, 6]
        for data in windows:
            x1, y1, x2, y2 = data["window"]
            for found in data["detections"]:
                bx1, by1, bx2, by2 = found["bbox"]
                assert x1 <= bx1 <= bx2 <= x2
                assert y1 <= by1 <= by2 <= y2
        name, result = events[-1]
        assert name == "result"
        plain = await http.post(f"/v1/scenes?{QUERY}", content=jpeg(200, 300))
        assert plain.json()["images"] == result["images"]
        tiled = await http.post(f"/v1/detect?{QUERY}", content=jpeg(200, 300))
        assert tiled.json()["images"][0]["detections"] == result["images"][0]["detections"]

    in_endpoint(check)


def test_the_result_comes_as_geojson_too() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        answer = await http.post(f"/v1/scenes?{QUERY}&format=geojson", content=jpeg(200, 300))
        assert answer.json()["type"] == "FeatureCollection"
        assert answer.json()["features"]

    in_endpoint(check)


def test_what_cannot_be_a_scene_is_refused_before_the_stream() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        headers = {"Accept": "text/event-stream"}
        bad = await http.post("/v1/scenes", content=b"hello", headers=headers)
        is_problem(bad, 415, "not_image")
        windows = await http.post("/v1/scenes?tile=128&overlap=4000", content=jpeg(250, 250))
        assert is_problem(windows, 422, "invalid_parameter")["limit"] == 10
        many = await http.post("/v1/scenes", content=jpeg(300, 300))
        is_problem(many, 422, "too_many_pixels")

    in_endpoint(check, given=options(limits=Limits(max_scene_pixels=80_000, max_windows=10)))


def test_places_are_few_and_given_back() -> None:
    def slow(images: list) -> list:
        time.sleep(0.1)
        return quadrants(images)

    async def check(http: httpx.AsyncClient) -> None:
        first = asyncio.create_task(http.post(f"/v1/scenes?{QUERY}", content=jpeg(200, 300)))
        await asyncio.sleep(0.05)
        second = await http.post(f"/v1/scenes?{QUERY}", content=jpeg(200, 300))
        is_problem(second, 429, "busy")
        assert "retry-after" in second.headers
        first.cancel()
        await asyncio.sleep(0.1)
        third = await http.post(f"/v1/scenes?{QUERY}", content=jpeg(40, 60))
        assert third.status_code == 200
        bad = await http.post("/v1/scenes", content=b"hello")
        assert bad.status_code == 415
        assert (await http.post("/v1/scenes", content=jpeg())).status_code == 200

    in_endpoint(check, predict=slow, given=options(limits=Limits(max_scenes=1)))


def test_people_do_not_wait_for_scenes() -> None:
    order: list[int] = []

    def slow(images: list) -> list:
        order.extend(image.shape[0] for image in images)
        time.sleep(0.05)
        return quadrants(images)

    async def run() -> None:
        async with serving(slow) as http:
            scene = asyncio.create_task(http.post(f"/v1/scenes?{QUERY}", content=jpeg(700, 700)))
            await asyncio.sleep(0.1)
            seen = len(order)
            await http.post("/v1/detect", content=jpeg(33, 44))
            assert 33 in order
            assert order.index(33) - seen <= 3 * 16
            assert not scene.done()
            await scene

    asyncio.run(run())


def test_a_scene_out_of_time_says_so_in_the_stream() -> None:
    def slow(images: list) -> list:
        time.sleep(0.3)
        return quadrants(images)

    async def check(http: httpx.AsyncClient) -> None:
        headers = {"Accept": "text/event-stream"}
        answer = await http.post(f"/v1/scenes?{QUERY}", content=jpeg(200, 200), headers=headers)
        name, problem = events_of(answer.text)[-1]
        assert name == "problem"
        assert problem["code"] == "timeout"

    in_endpoint(check, predict=slow, given=options(limits=Limits(scene_timeout_s=0.2)))
