"""The inference protocol: JSON and binary, in and out, as its clients send and read it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import struct

import httpx
import numpy as np
import pytest

from d2det.inference.decode import decode_image
from tests.platform.serve.endpoint import jpeg, serving
from tests.platform.serve.test_native import in_endpoint

INFER = "/v2/models/d2det/infer"
TENSOR = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [""]}


def bytes_tensor(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(each)) + each for each in elements)


def binary_request(
    data: bytes, shape: list[int], datatype: str, name: str = "image", **head
) -> tuple[bytes, dict[str, str]]:
    """A body as tritonclient sends it: no content type, the JSON's length in a header."""
    tensor = {
        "name": name,
        "shape": shape,
        "datatype": datatype,
        "parameters": {"binary_data_size": len(data)},
    }
    text = json.dumps({"inputs": [tensor], **head}).encode()
    return text + data, {"Inference-Header-Content-Length": str(len(text))}


def outputs_of(answer: httpx.Response) -> dict[str, np.ndarray | list]:
    """The outputs of an answer, JSON or binary."""
    length = answer.headers.get("inference-header-content-length")
    head = json.loads(answer.content[: int(length)] if length else answer.content)
    rest = answer.content[int(length) :] if length else b""
    kinds = {"FP32": "<f4", "INT64": "<i8", "INT32": "<i4"}
    found = {}
    for output in head["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if output["datatype"] == "BYTES":
            values = output["data"] if size is None else []
            part, rest = (b"", rest) if size is None else (rest[:size], rest[size:])
            while part:
                (n,) = struct.unpack("<I", part[:4])
                values.append(part[4 : 4 + n].decode())
                part = part[4 + n :]
            found[output["name"]] = values
            continue
        kind = kinds[output["datatype"]]
        if size is None:
            flat = np.array(output["data"], kind)
        else:
            flat, rest = np.frombuffer(rest[:size], kind), rest[size:]
        found[output["name"]] = flat.reshape(output["shape"])
    assert not rest
    return found


def test_binary_in_and_out_gives_the_boxes_of_the_native_api() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        pictures = [jpeg(40, 60), jpeg(30, 20)]
        body, headers = binary_request(
            bytes_tensor(*pictures), [2], "BYTES", id="7", parameters={"binary_data_output": True}
        )
        for packed, extra in (
            (body, {}),
            (gzip.compress(body), {"Content-Encoding": "gzip"}),
        ):
            answer = await http.post(INFER, content=packed, headers=headers | extra)
            assert answer.status_code == 200, answer.text
            found = outputs_of(answer)
            assert found["num_detections"].tolist() == [2, 2]
            assert found["boxes"].shape == (4, 4)
            assert found["label_names"] == ["ship", "plane"] * 2
            native = [
                (await http.post("/v1/detect", content=p)).json()["images"][0] for p in pictures
            ]
            boxes = [d["bbox"] for row in native for d in row["detections"]]
            assert np.allclose(found["boxes"], boxes)
            assert found["labels"].tolist() == [3, 7, 3, 7]

    in_endpoint(check)


def test_json_in_and_out_with_chosen_outputs_and_the_id_back() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        request = {
            "id": "abc",
            "model_name": "ignored",
            "parameters": {"score_threshold": 0.6},
            "inputs": [
                {
                    "name": "image",
                    "shape": [1],
                    "datatype": "BYTES",
                    "data": [base64.b64encode(jpeg(40, 60)).decode()],
                }
            ],
            "outputs": [
                {"name": "scores"},
                {"name": "boxes", "parameters": {"binary_data": False}},
            ],
        }
        answer = await http.post(INFER, json=request)
        body = answer.json()
        assert body["id"] == "abc"
        assert [output["name"] for output in body["outputs"]] == ["scores", "boxes"]
        assert outputs_of(answer)["boxes"].tolist() == [[0, 0, 30, 20]]

    in_endpoint(check)


def test_pixels_equal_the_picture_they_come_from() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        pixels = decode_image(jpeg(40, 60))
        body, headers = binary_request(pixels.tobytes(), [1, 40, 60, 3], "UINT8", "pixels")
        from_pixels = outputs_of(await http.post(INFER, content=body, headers=headers))
        body, headers = binary_request(bytes_tensor(jpeg(40, 60)), [1], "BYTES")
        from_bytes = outputs_of(await http.post(INFER, content=body, headers=headers))
        assert np.array_equal(from_pixels["scores"], from_bytes["scores"])
        assert np.array_equal(from_pixels["boxes"], from_bytes["boxes"])

    in_endpoint(check)


def test_health_and_metadata_have_what_both_kinds_of_client_look_for() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        assert (await http.get("/v2/health/live")).json() == {"live": True}
        assert (await http.get("/v2/health/ready")).json()["ready"] is True
        assert "binary_tensor_data" in (await http.get("/v2")).json()["extensions"]
        model = (await http.get("/v2/models/d2det")).json()
        assert model["inputs"][0] == {"name": "image", "datatype": "BYTES", "shape": [-1]}
        schemas = (await http.get("/openapi.json")).json()["components"]["schemas"]
        described = schemas["InputTensor"]["properties"]
        for member in ("name", "datatype"):
            assert [each[member] for each in model["inputs"]] == described[member]["enum"]
        version = model["versions"][0]
        for path in ("", f"/versions/{version}"):
            assert (await http.get(f"/v2/models/d2det{path}/ready")).json()["ready"] is True
        for path in ("nobody", "nobody/ready", "d2det/versions/x", "d2det/config", "d2det/stats"):
            answer = await http.get(f"/v2/models/{path}")
            assert answer.status_code == 404
            assert "error" in answer.json()

    in_endpoint(check)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"inputs": []}, 422),
        ({"inputs": "x"}, 422),
        ({"inputs": [TENSOR, TENSOR]}, 422),
        ({"datatype": "UINT8", "shape": [2**63, 0], "data": []}, 422),
        ({"name": "tensor"}, 422),
        ({"datatype": "FP32"}, 422),
        ({"shape": [2]}, 422),
        ({"shape": [-1]}, 422),
        ({"data": [1]}, 422),
        ({"data": ["!"]}, 422),
        ({"data": None}, 422),
        ({"data": ["aGVsbG8="]}, 415),
        ({"parameters": {"binary_data_size": 99}}, 422),
        ({"parameters": {"binary_data_size": True}}, 422),
        ({"outputs": [{"name": "nothing"}]}, 422),
        ({"request_parameters": {"max_detections": 0}}, 422),
    ],
)
def test_requests_that_make_no_sense(change: dict, status: int) -> None:
    tensor = dict(TENSOR)
    request = {"inputs": [tensor]}
    for name, value in change.items():
        if name == "request_parameters":
            request["parameters"] = value
        elif name in ("inputs", "outputs"):
            request[name] = value
        else:
            tensor[name] = value

    async def check(http: httpx.AsyncClient) -> None:
        answer = await http.post(INFER, json=request)
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]

    in_endpoint(check)


@pytest.mark.parametrize("length", ["x", "-1", "99999", "9" * 5000])
def test_a_false_header_length_is_refused(length: str) -> None:
    async def check(http: httpx.AsyncClient) -> None:
        headers = {"Inference-Header-Content-Length": length}
        answer = await http.post(INFER, content=b"{}", headers=headers)
        assert answer.status_code == 400

    in_endpoint(check)


def test_bytes_that_no_tensor_claims_are_refused() -> None:
    async def run() -> None:
        async with serving() as http:
            body, headers = binary_request(bytes_tensor(jpeg()), [1], "BYTES")
            answer = await http.post(INFER, content=body + b"more", headers=headers)
            assert answer.status_code == 400

    asyncio.run(run())
