"""The native API: /v1/detect, /v1/model, /healthz, /readyz."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from d2det_platform.serve import formats, problems
from d2det_platform.serve.asked import Asked, Format, check
from d2det_platform.serve.bodies import uploads_of
from d2det_platform.serve.deadlines import deadline_of
from d2det_platform.serve.problems import Problem
from d2det_platform.serve.query import describe_query, read_query
from d2det_platform.serve.schemas import ModelAnswer, detect_responses, problem_responses
from d2det_platform.serve.service import Service

_BINARY = {"type": "string", "format": "binary"}
_RAW = ("jpeg", "png", "webp", "tiff", "bmp")


def router(service: Service) -> APIRouter:
    """Returns the routes."""
    routes = APIRouter(tags=["detect"])

    @routes.post(
        "/v1/detect",
        response_model=None,
        openapi_extra=described(service, Asked, several=True),
        responses=detect_responses(400, 408, 413, 415, 422, 429, 500, 503, 504),
        summary="Find objects in one or several pictures",
    )
    async def detect(request: Request) -> Response:
        """Takes a picture as the raw body, several as multipart/form-data, or JSON.

        Of several pictures each stands for itself: one that cannot be read has an `error`, unless
        none can.
        """
        asked = read_query(request.query_params, Asked)
        check(asked, service.limits, service.info)
        deadline = deadline_of(request, service.limits)
        with service.intake.holding() as held:
            body = await service.intake.read(request, held)
            uploads = uploads_of(request, body, service.limits)
            rows = await service.detect(uploads, asked, deadline=deadline)
        _raise_if_none(rows)
        request.state.log = {"pictures": len(rows), "bytes": held.size}
        seconds = time.monotonic() - request.state.start
        if asked.format != "native":
            answer = formats.convert(
                asked.format,
                rows,
                first_id=asked.image_id,
                version=service.info.version,
                time_s=seconds,
            )
            return as_json(answer)
        return as_json(
            {
                "version": 1,
                "model": model_name(service),
                "request_id": request.state.request_id,
                "images": [
                    {**row, "detections": [formats.compact(d) for d in row["detections"]]}
                    for row in rows
                ],
                "timing_ms": round(1000 * seconds, 2),
            }
        )

    @routes.get("/v1/model", response_model=ModelAnswer, responses=problem_responses())
    async def model(request: Request) -> Response:
        """Says which weights are loaded, their classes, and every limit."""
        info = service.info
        return as_json(
            {
                **model_name(service),
                "preset": info.preset,
                "categories": [{"id": c.id, "name": c.name} for c in info.categories],
                "masks": info.has_masks,
                "formats": list(get_args(Format)),
                "limits": service.limits.model_dump(mode="json"),
            }
        )

    @routes.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """Answers while this process lives."""
        return {"status": "ok"}

    @routes.get("/readyz", tags=["health"], responses=problem_responses(503))
    async def readyz() -> dict[str, str]:
        """Answers 200 when a detector is loaded and warm."""
        if not await service.ready():
            raise problems.unavailable("no detector is ready yet", retry_after_s=2)
        return {"status": "ready"}

    return routes


def _raise_if_none(rows: Sequence[Mapping[str, Any]]) -> None:
    errors = [row["error"] for row in rows if "error" in row]
    if errors and len(errors) == len(rows):
        first = errors[0]
        raise Problem(
            first["reason"],
            f"none of the {len(rows)} pictures can be used; the first: {first['detail']}",
            pictures=errors,
        )


def described(service: Service, asked: type[Asked], *, several: bool) -> dict[str, Any]:
    """Returns the description of a query, and of a body of one picture or several."""
    kinds = [*(f"image/{kind}" for kind in _RAW), "application/octet-stream"]
    content: dict[str, Any] = {kind: {"schema": _BINARY} for kind in kinds}
    picture = {"type": "string", "format": "base64-picture"}
    forms = [{"type": "object", "required": ["b64"], "properties": {"b64": picture}}]
    if service.options.outside.allows_anything():
        address = {"type": "string", "format": "uri"}
        forms.append({"type": "object", "required": ["url"], "properties": {"url": address}})
    entry: dict[str, Any] = {"oneOf": forms}
    one = {"type": "object", "required": ["image"], "properties": {"image": entry}}
    content["application/json"] = {"schema": one}
    if several:
        count = {"minItems": 1, "maxItems": service.limits.max_pictures}
        many = {
            "type": "object",
            "required": ["images"],
            "properties": {"images": {"type": "array", "items": entry, **count}},
        }
        content["application/json"] = {"schema": {"anyOf": [one, many]}}
        files = {"type": "array", "items": _BINARY, **count}
        content["multipart/form-data"] = {
            "schema": {"type": "object", "required": ["file"], "properties": {"file": files}},
            "encoding": {"file": {"contentType": "image/jpeg"}},
        }
    names = [category.name for category in service.info.categories]
    most = service.limits.max_detections
    return {
        "parameters": describe_query(asked, classes=names, max_detections=most),
        "requestBody": {"required": True, "content": content},
    }


def model_name(service: Service) -> dict[str, str]:
    """Returns the fields of `ModelName`."""
    info = service.info
    return {"name": info.name, "version": info.version, "digest": info.digest}


def as_json(value: Any, status: int = 200) -> Response:
    """Returns the HTTP answer that holds `value`."""
    return Response(orjson.dumps(value), status, media_type="application/json")
