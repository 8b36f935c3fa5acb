"""The Label Studio backend: every task answered, labels mapped, addresses guarded."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from d2det_platform.serve.label_config import read_label_config
from d2det_platform.serve.options import Outside
from d2det_platform.serve.problems import Problem
from tests.platform.serve.endpoint import jpeg, options
from tests.platform.serve.test_native import in_endpoint, is_problem

CONFIG = """<View><!-- ours -->
  <Image name="img" value="$photo"/>
  <RectangleLabels name="box" toName="img">
    <Label value="Vessel" predicted_values="ship,boat"/><Label value="Plane"/>
  </RectangleLabels>
</View>"""


async def fetch(url: str, limit: int, seconds: float) -> bytes:
    if not url.startswith("https://img.example.org/"):
        raise Problem("url_not_allowed", f"not {url}")
    return jpeg(40, 60)


def request(*values: Any, **changes: Any) -> dict[str, Any]:
    tasks = [{"id": i, "data": {"photo": value}} for i, value in enumerate(values)]
    return {"tasks": tasks, "label_config": CONFIG, "project": "1.2", **changes}


def test_all_tasks_are_answered_in_order_with_mapped_labels_in_percent() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        asked = request("https://img.example.org/a.jpg", "https://evil.example/b.jpg", 7)
        asked["params"] = {"context": {"score_threshold": 0.0}}
        answer = (await http.post("/labelstudio/predict", json=asked)).json()
        first, refused, odd = answer["results"]
        region = first["result"][0]
        assert (region["from_name"], region["to_name"]) == ("box", "img")
        assert region["value"]["rectanglelabels"] == ["Vessel"]
        assert region["value"]["width"] == region["value"]["height"] == 50
        assert (region["original_width"], region["original_height"]) == (60, 40)
        assert len(first["result"]) == 2
        assert refused["result"] == odd["result"] == []
        assert "evil" in refused["error"]
        assert answer["unmapped"] == []
        assert first["model_version"] == refused["model_version"] == "d2det-1"

    in_endpoint(check, fetch=fetch)


def test_classes_without_a_label_are_reported_and_left_out() -> None:
    config = CONFIG.replace('<Label value="Plane"/>', "")

    async def check(http: httpx.AsyncClient) -> None:
        asked = request("https://img.example.org/a.jpg", label_config=config)
        answer = (await http.post("/labelstudio/predict", json=asked)).json()
        assert answer["unmapped"] == ["plane"]
        assert len(answer["results"][0]["result"]) == 1
        setup = await http.post("/labelstudio/setup", json={"project": "1", "schema": config})
        assert setup.json() == {"model_version": "d2det-1", "unmapped": ["plane"]}

    in_endpoint(check, fetch=fetch)


def test_paths_are_looked_for_at_label_studio() -> None:
    seen: list[str] = []

    async def remember(url: str, limit: int, seconds: float) -> bytes:
        seen.append(url)
        return jpeg()

    async def check(http: httpx.AsyncClient) -> None:
        asked = request("/data/upload/1/a.jpg", "//evil.example/a.jpg")
        await http.post("/labelstudio/predict", json=asked)

    outside = Outside(label_studio_url="http://studio:8080", private_hosts=("studio",))
    in_endpoint(check, fetch=remember, given=options(outside=outside))
    assert seen[0] == "http://studio:8080/data/upload/1/a.jpg"
    assert seen[1] == "http://evil.example/a.jpg"  # which the guard refuses


def test_a_path_that_is_none_leaves_its_task_empty() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        answer = await http.post("/labelstudio/predict", json=request("//["))
        (result,) = answer.json()["results"]
        assert result["result"] == []
        assert "cannot be read" in result["error"]

    outside = Outside(label_studio_url="http://studio:8080", private_hosts=("studio",))
    in_endpoint(check, given=options(outside=outside))


def test_what_its_connector_asks_first() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        for path in ("/labelstudio/", "/labelstudio/health"):
            assert (await http.get(path)).json()["status"] == "UP"
        assert (await http.post("/labelstudio/webhook", json={"action": "X"})).status_code == 201

    in_endpoint(check)


@pytest.mark.parametrize(
    "config",
    [
        "",
        "<View>",
        "<View/>",
        '<View><RectangleLabels name="a" toName="b"/></View>',
        '<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>',
        '<View><Image name="b" value="x"/><RectangleLabels name="a" toName="b"/></View>',
        "<View>" + "x" * 300_000 + "</View>",
    ],
)
def test_interfaces_that_cannot_be_used(config: str) -> None:
    with pytest.raises(Problem) as caught:
        read_label_config(config)
    assert caught.value.code == "invalid_parameter"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"tasks": "x", "label_config": CONFIG},
        {"tasks": [{"data": 1}], "label_config": CONFIG},
        request("https://img.example.org/a.jpg", label_config="<View/>"),
        request("https://img.example.org/a.jpg", params={"context": {"score_threshold": 2}}),
    ],
)
def test_requests_that_make_no_sense(body: dict) -> None:
    async def check(http: httpx.AsyncClient) -> None:
        is_problem(await http.post("/labelstudio/predict", json=body), 422, "invalid_parameter")
        answer = await http.post("/labelstudio/predict", content=b"{")
        is_problem(answer, 400, "malformed")

    in_endpoint(check)
