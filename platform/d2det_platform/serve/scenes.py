"""POST /v1/scenes: a large picture, tiled, with progress and partial results as they come.

A client that accepts `text/event-stream` gets events: `scene` (size and number of windows),
`window` for each window that is done (what it shows, before merging), `result`, or `problem`.
Other clients get the result alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import orjson
from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from d2det.inference.decode import DecodeError, check_header, decode_image, read_header
from d2det.inference.windows import ArrayScene, Window, WindowDetections
from d2det_platform.serve import formats, problems
from d2det_platform.serve.asked import MIN_TILE, Asked, check, windows_of
from d2det_platform.serve.bodies import Held, uploads_of
from d2det_platform.serve.georeference import Georeference, read_georeference
from d2det_platform.serve.native import as_json, described, model_name
from d2det_platform.serve.problems import Problem
from d2det_platform.serve.query import read_query
from d2det_platform.serve.schemas import detect_responses
from d2det_platform.serve.service import Service
from d2det_platform.serve.windows import look, merge

EVENTS = "text/event-stream"


class SceneAsked(Asked):
    """Query parameters of a scene: those of a detection, always tiled."""

    tile: int = Field(default=800, ge=MIN_TILE, le=8192)
    """Pixels of a window's sides."""
    masks: bool = False
    """Answer with masks, where the model has them."""


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    name: str
    data: dict[str, Any]

    def encode(self) -> bytes:
        """Returns the event on the wire."""
        return b"event: %s\ndata: %s\n\n" % (self.name.encode(), orjson.dumps(self.data))


def router(service: Service) -> APIRouter:
    """Returns the routes."""
    routes = APIRouter(tags=["scenes"])
    places = asyncio.Semaphore(service.limits.max_scenes)

    @routes.post(
        "/v1/scenes",
        response_model=None,
        openapi_extra=described(service, SceneAsked, several=False),
        responses=detect_responses(400, 408, 413, 415, 422, 429, 500, 503, 504),
        summary="Find objects in a large picture, window by window",
    )
    async def scenes(request: Request) -> Response:
        """Takes a picture, or the address of one where the server allows that."""
        asked = read_query(request.query_params, SceneAsked)
        check(asked, service.limits, service.info)
        if places.locked():
            service.recorder.add("d2det_rejects", reason="scenes")
            raise problems.busy("other scenes are being worked on", retry_after_s=30)
        await places.acquire()
        release = _Once(places.release)
        try:
            deadline = request.state.start + service.limits.scene_timeout_s
            scene, name, place = await _open(service, request, deadline)
            windows = windows_of(scene.size, asked, service.limits)
            events = _work(service, request, scene, name, place, windows, asked, deadline)
            if EVENTS in request.headers.get("accept", ""):
                stream = StreamingResponse(_stream(events, request, release), media_type=EVENTS)
                stream.headers["X-Accel-Buffering"] = "no"
                return stream
            result: dict[str, Any] = {}
            async for event in events:
                result = event.data
            release()
            return as_json(result)
        except BaseException:
            release()
            raise

    return routes


class _Once:
    """Calls a function at the first of several calls."""

    def __init__(self, call: Any) -> None:
        self._call: Any = call

    def __call__(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()


async def _open(
    service: Service, request: Request, deadline: float
) -> tuple[ArrayScene, str, Georeference | None]:
    """The pixels of the scene, its name and its place; the bytes it came as are let go."""
    limits = service.limits
    with service.intake.holding() as held:
        body = await service.intake.read(request, held, limits.max_scene_bytes)
        uploads = uploads_of(request, body, limits)
        if len(uploads) != 1:
            raise Problem("too_many_pictures", "a scene is one picture", limit=1)
        data = await service.data_of(uploads[0], limits.max_scene_bytes, deadline)
        _count(held, len(data), body)
        try:
            header = read_header(BytesIO(data))
            check_header(header, limits.scene())
            pixels = await asyncio.to_thread(decode_image, data, limits.scene())
        except DecodeError as error:
            raise service.refused(error) from None
    is_plain_tiff = header.format == "tiff" and header.orientation == 1
    place = read_georeference(data) if is_plain_tiff else None
    return ArrayScene(pixels), uploads[0].name, place


def _count(held: Held, size: int, body: bytes) -> None:
    if size > len(body):  # fetched
        held.add(size)


async def _work(
    service: Service,
    request: Request,
    scene: ArrayScene,
    name: str,
    place: Georeference | None,
    windows: Sequence[Window],
    asked: SceneAsked,
    deadline: float,
) -> AsyncIterator[Event]:
    height, width = scene.size
    yield Event("scene", {"width": width, "height": height, "windows": len(windows)})
    masks = asked.masks and service.info.has_masks
    results: list[WindowDetections] = []
    start = time.monotonic()
    looked = look(service.courier, scene, windows, masks=masks, deadline=deadline)
    async for result in looked:
        results.append(result)
        spent = time.monotonic() - start
        window = result.window
        yield Event(
            "window",
            {
                "done": len(results),
                "windows": len(windows),
                "seconds_left": round(spent / len(results) * (len(windows) - len(results)), 1),
                "window": [window.x, window.y, window.x + window.width, window.y + window.height],
                "detections": await asyncio.to_thread(_boxes, service, result, asked),
            },
        )
    found = await merge(results, scene.size)
    row = await asyncio.to_thread(service.row_of, name, found, asked)
    request.state.log = {"pictures": 1, "windows": len(windows)}
    answer = await asyncio.to_thread(_result, service, request, row, place, asked)
    yield Event("result", answer)


def _boxes(service: Service, result: WindowDetections, asked: SceneAsked) -> list[dict[str, Any]]:
    """Boxes of a window in the scene; masks only come with the result."""
    row = service.row_of("", result.found, asked)
    return [{k: v for k, v in d.items() if not k.startswith("mask")} for d in row["detections"]]


def _result(
    service: Service,
    request: Request,
    row: dict[str, Any],
    place: Georeference | None,
    asked: SceneAsked,
) -> dict[str, Any]:
    seconds = time.monotonic() - request.state.start
    if asked.format != "native":
        version = service.info.version
        converted = formats.convert(
            asked.format, [row], first_id=asked.image_id, version=version, time_s=seconds
        )
        if asked.format == "geojson" and place is not None:
            with contextlib.suppress(ValueError, ImportError):  # then they stay pixels, and say so
                converted = formats.on_the_map(converted, place)
        return converted if isinstance(converted, dict) else {"results": converted}
    return {
        "version": 1,
        "model": model_name(service),
        "request_id": request.state.request_id,
        "images": [{**row, "detections": [formats.compact(d) for d in row["detections"]]}],
        "timing_ms": round(1000 * seconds, 2),
    }


async def _stream(
    events: AsyncIterator[Event], request: Request, release: _Once
) -> AsyncIterator[bytes]:
    try:
        async for event in events:
            yield event.encode()
    except Problem as problem:
        yield Event("problem", problem.body(request.state.request_id)).encode()
    finally:
        release()
        await events.aclose()  # type: ignore[attr-defined]
