"""The native API: what it answers to good and to bad requests."""

import asyncio

from tests.platform.serve.endpoint import jpeg, serving


def test_a_raw_picture_gives_one_row_with_boxes_in_its_pixels() -> None:
    async def check() -> None:
        async with serving() as http:
            answer = await http.post("/v1/detect", content=jpeg(40, 60))
            assert answer.status_code == 200, answer.text
            body = answer.json()
            (row,) = body["images"]
            assert (row["width"], row["height"]) == (60, 40)
            assert row["detections"][0] == {
                "bbox": [0, 0, 30, 20],
                "score": 0.9,
                "label": "ship",
                "category_id": 3,
            }
            assert body["request_id"] == answer.headers["x-request-id"]

    asyncio.run(check())
