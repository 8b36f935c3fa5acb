"""KServe's own client, protocol v2, against the endpoint whose address is the argument."""

import asyncio
import base64
import struct
import sys
import zlib

from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


def png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    rows = b"".join(b"\0" + bytes([80, 120, 90]) * width for _ in range(height))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + head + data + chunk(b"IEND", b"")


async def main(address: str) -> None:
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    assert await client.is_server_live(address) is True
    assert await client.is_server_ready(address) is True
    assert await client.is_model_ready(address, "d2det") is True
    picture = png(60, 40)
    for is_binary in (False, True):
        given = InferInput("image", [1], "BYTES")
        if is_binary:
            import numpy as np

            given.set_data_from_numpy(np.array([picture], dtype=object), binary_data=True)
        else:
            given = InferInput("image", [1], "BYTES", data=[base64.b64encode(picture).decode()])
        request = InferRequest("d2det", [given], request_id="9")
        answer = await client.infer(address, request, model_name="d2det")
        outputs = {output.name: output for output in answer.outputs}
        boxes = outputs["boxes"].as_numpy().reshape(-1, 4).tolist()
        assert boxes[0] == [0, 0, 30, 20], boxes
        assert outputs["num_detections"].as_numpy().tolist() == [2]
        assert answer.id == "9"
        print(f"kserve, binary {is_binary}: {boxes}")


asyncio.run(main(sys.argv[1]))
