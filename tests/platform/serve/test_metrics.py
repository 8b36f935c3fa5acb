"""What is measured of requests that pass and of those that do not."""

from __future__ import annotations

import httpx

from d2det_platform.serve.metrics import METRICS
from tests.platform.serve.endpoint import jpeg
from tests.platform.serve.test_native import in_endpoint

ONLY_IN_REPLICAS = {"d2det_cold_start_s", "d2det_retries"}


def test_requests_are_counted_by_route_and_status_and_pictures_by_what_they_cost() -> None:
    async def check(http: httpx.AsyncClient) -> None:
        for _ in range(3):
            await http.post("/v1/detect", content=jpeg(40, 60))
        await http.post("/v1/detect", content=b"hello")
        await http.get("/nothing/secret")
        recorder = http.service.recorder  # type: ignore[attr-defined]
        assert recorder.total("d2det_requests", route="/v1/detect", status="200") == 3
        assert recorder.total("d2det_requests", route="/v1/detect", status="415") == 1
        assert recorder.total("d2det_requests", route="other", status="404") == 1
        assert recorder.total("d2det_rejects", reason="not_image") == 1
        assert recorder.total("d2det_pictures") == 3
        assert recorder.total("d2det_pixels") == 3 * 2400
        measured = {name for name, _ in recorder.values}
        assert measured == set(METRICS) - ONLY_IN_REPLICAS

    in_endpoint(check)
