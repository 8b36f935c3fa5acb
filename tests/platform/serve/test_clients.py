"""Clients that others wrote, unmodified, against the endpoint on a real port."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from d2det.inference.decode import decode_image
from tests.platform.serve.endpoint import jpeg, listening

triton = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with listening() as found:
        yield found


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    made = triton.InferenceServerClient(address.removeprefix("http://"))
    yield made
    made.close()


def image_input(*pictures: bytes, binary: bool = True) -> Any:
    given = triton.InferInput("image", [len(pictures)], "BYTES")
    if binary:
        given.set_data_from_numpy(np.array(pictures, dtype=object), binary_data=True)
    else:
        import base64

        texts = np.array([base64.b64encode(p) for p in pictures], dtype=object)
        given.set_data_from_numpy(texts, binary_data=False)
    return given


def test_triton_finds_the_server_live_ready_and_described(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("d2det")
    assert not client.is_model_ready("nobody")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    described = client.get_model_metadata("d2det")
    assert [given["name"] for given in described["outputs"]][:2] == ["boxes", "scores"]
    with pytest.raises(triton.InferenceServerException, match="there is nothing here"):
        client.get_model_config("d2det")


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("compressed", [None, "gzip", "deflate"])
def test_triton_gets_the_boxes_of_the_native_api(
    client: Any, address: str, binary: bool, compressed: str | None
) -> None:
    pictures = [jpeg(40, 60), jpeg(30, 20)]
    outputs = [
        triton.InferRequestedOutput(name, binary_data=binary)
        for name in ("boxes", "scores", "labels", "label_names", "num_detections")
    ]
    result = client.infer(
        "d2det",
        [image_input(*pictures, binary=binary)],
        outputs=outputs,
        request_id="17",
        request_compression_algorithm=compressed,
        response_compression_algorithm=compressed,
    )
    assert result.get_response()["id"] == "17"
    assert result.as_numpy("num_detections").tolist() == [2, 2]
    native = [
        httpx.post(f"{address}/v1/detect", content=p).json()["images"][0]["detections"]
        for p in pictures
    ]
    boxes = [found["bbox"] for row in native for found in row]
    assert np.allclose(result.as_numpy("boxes"), boxes)
    names = [str(n, "utf-8") if isinstance(n, bytes) else n for n in result.as_numpy("label_names")]
    assert names == ["ship", "plane"] * 2


def test_triton_sends_pixels_and_thresholds(client: Any) -> None:
    pixels = decode_image(jpeg(40, 60))[None]
    given = triton.InferInput("pixels", list(pixels.shape), "UINT8")
    given.set_data_from_numpy(pixels)
    result = client.infer("d2det", [given], parameters={"score_threshold": 0.6})
    assert result.as_numpy("boxes").tolist() == [[0, 0, 30, 20]]


def test_triton_raises_what_is_wrong_with_a_picture(client: Any) -> None:
    with pytest.raises(triton.InferenceServerException, match="begins with"):
        client.infer("d2det", [image_input(b"hello")])
