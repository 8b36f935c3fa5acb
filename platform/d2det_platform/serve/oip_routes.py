"""The Open Inference Protocol under /v2: clients of Triton and KServe work unmodified."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from d2det_platform.serve import oip
from d2det_platform.serve.asked import Asked, check
from d2det_platform.serve.bodies import Upload
from d2det_platform.serve.deadlines import deadline_of
from d2det_platform.serve.native import as_json
from d2det_platform.serve.problems import Problem
from d2det_platform.serve.schemas import problem_responses
from d2det_platform.serve.service import Service

_PARSE_IN_THREAD = 262_144
"""Bytes of a body from which taking it apart leaves the event loop."""
_ASKED = ("score_threshold", "max_detections", "classes")
INPUTS = [
    {"name": "image", "datatype": "BYTES", "shape": [-1]},
    {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
]
"""Encoded pictures, or RGB pixels of pictures of one size: give one of the two."""
OUTPUTS = [
    {"name": "boxes", "datatype": "FP32", "shape": [-1, 4]},
    {"name": "scores", "datatype": "FP32", "shape": [-1]},
    {"name": "labels", "datatype": "INT64", "shape": [-1]},
    {"name": "label_names", "datatype": "BYTES", "shape": [-1]},
    {"name": "num_detections", "datatype": "INT32", "shape": [-1]},
]
"""Detections of all pictures, one after the other; num_detections says how many are whose."""
MASKS = {"name": "masks", "datatype": "BYTES", "shape": [-1]}
"""COCO run lengths, for models that predict masks."""
_INFER_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}},
        },
    }
}


def router(service: Service) -> APIRouter:
    """Returns the routes."""
    routes = APIRouter(prefix="/v2", tags=["open inference protocol"])
    outputs = [*OUTPUTS, *([MASKS] if service.info.has_masks else [])]

    @routes.get("")
    async def server() -> dict[str, Any]:
        """Names the server and its extensions."""
        return {
            "name": service.info.name,
            "version": service.info.version,
            "extensions": ["binary_tensor_data"],
        }

    @routes.get("/health/live")
    async def live() -> dict[str, bool]:
        """Answers while this process lives."""
        return {"live": True}

    @routes.get("/health/ready", responses=problem_responses(503))
    async def ready() -> Response:
        """Answers 200 when a detector is loaded and warm."""
        is_ready = await service.ready()
        return as_json({"ready": is_ready, "live": True}, 200 if is_ready else 503)

    @routes.get("/models/{model}", responses=problem_responses(404))
    @routes.get("/models/{model}/versions/{version}", responses=problem_responses(404))
    async def metadata(model: str, version: str | None = None) -> dict[str, Any]:
        """Describes inputs and outputs."""
        _check_name(service, model, version)
        return {
            "name": service.info.name,
            "versions": [service.info.version],
            "platform": "d2det",
            "inputs": INPUTS,
            "outputs": outputs,
        }

    @routes.get("/models/{model}/ready", responses=problem_responses(404, 503))
    @routes.get("/models/{model}/versions/{version}/ready", responses=problem_responses(404, 503))
    async def model_ready(model: str, version: str | None = None) -> Response:
        """Answers 200 when a detector is loaded and warm."""
        _check_name(service, model, version)
        is_ready = await service.ready()
        answer = {"name": service.info.name, "ready": is_ready}
        return as_json(answer, 200 if is_ready else 503)

    refusals = problem_responses(400, 404, 408, 413, 415, 422, 429, 500, 503, 504)

    @routes.post("/models/{model}/infer", openapi_extra=_INFER_BODY, responses=refusals)
    @routes.post(
        "/models/{model}/versions/{version}/infer", openapi_extra=_INFER_BODY, responses=refusals
    )
    async def infer(request: Request, model: str, version: str | None = None) -> Response:
        """Predicts pictures.

        With the binary extension, tensors follow the JSON, whose length a header states; such
        requests need no content type.
        """
        _check_name(service, model, version)
        deadline = deadline_of(request, service.limits)
        with service.intake.holding() as held:
            body = await service.intake.read(request, held)
            length = request.headers.get(oip.LENGTH_HEADER)
            read = oip.read_request
            if len(body) < _PARSE_IN_THREAD:
                asked_for, tensor = read(body, length)
            else:
                asked_for, tensor = await asyncio.to_thread(read, body, length)
            names = [str(output["name"]) for output in outputs]
            binary = oip.wants_binary(asked_for, names)
            asked = _asked(asked_for.parameters, masks="masks" in binary)
            check(asked, service.limits, service.info)
            uploads = _uploads(tensor, service)
            rows = await service.detect(uploads, asked, deadline=deadline)
        request.state.log = {"pictures": len(rows), "bytes": held.size}
        _raise_first_error(rows)
        head = {"model_name": service.info.name, "model_version": service.info.version}
        if asked_for.id is not None:
            head["id"] = asked_for.id
        found = _outputs(rows)
        text, header_length = oip.write_response(head, {n: found[n] for n in binary}, binary)
        if header_length is None:
            return Response(text, media_type="application/json")
        return Response(
            text,
            media_type="application/octet-stream",
            headers={oip.LENGTH_HEADER: str(header_length)},
        )

    return routes


def _check_name(service: Service, model: str, version: str | None) -> None:
    if model != service.info.name:
        raise Problem("not_found", f"no model {model[:80]!r}; there is {service.info.name!r}")
    if version is not None and version != service.info.version:
        raise Problem("not_found", f"no version {version[:80]!r}; it is {service.info.version!r}")


def _asked(parameters: Mapping[str, Any], *, masks: bool) -> Asked:
    """What the parameters of a request ask for; those of other servers are ignored."""
    values = {name: parameters[name] for name in _ASKED if name in parameters}
    if isinstance(values.get("classes"), str):
        values["classes"] = values["classes"].split(",")
    try:
        return Asked(masks=masks, **values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise Problem("invalid_parameter", f"{name}: {first['msg']}", parameter=name) from None


def _uploads(values: oip.Tensor, service: Service) -> list[Upload]:
    if isinstance(values, list):
        uploads = [Upload(f"picture {i}", data) for i, data in enumerate(values)]
    else:
        uploads = [Upload(f"picture {i}", pixels=p) for i, p in enumerate(_pictures(values))]
    if not 1 <= len(uploads) <= service.limits.max_pictures:
        raise Problem(
            "too_many_pictures",
            f"a request holds 1 to {service.limits.max_pictures} pictures",
            limit=service.limits.max_pictures,
        )
    return uploads


def _pictures(pixels: Any) -> list[Any]:
    if pixels.ndim == 3:
        pixels = pixels[None]
    if pixels.ndim != 4 or pixels.shape[3] != 3 or 0 in pixels.shape:
        raise Problem(
            "invalid_parameter",
            f"pixels have shape {list(pixels.shape)}; [N, height, width, 3] is read",
        )
    return list(pixels)


def _raise_first_error(rows: Sequence[Mapping[str, Any]]) -> None:
    for i, row in enumerate(rows):
        if (error := row.get("error")) is not None:
            raise Problem(error["reason"], f"picture {i}: {error['detail']}", picture=i)


def _outputs(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, list[int], oip.Tensor]]:
    found = [each for row in rows for each in row["detections"]]
    count = len(found)
    masks = [(each["mask"] or {"counts": ""})["counts"].encode() for each in found]
    boxes = np.array([each["bbox"] for each in found], np.float32).reshape(count, 4)
    return {
        "boxes": ("FP32", [count, 4], boxes),
        "scores": ("FP32", [count], np.array([f["score"] for f in found], np.float32)),
        "labels": ("INT64", [count], np.array([f["category_id"] for f in found], np.int64)),
        "label_names": ("BYTES", [count], [f["label"].encode() for f in found]),
        "num_detections": (
            "INT32",
            [len(rows)],
            np.array([len(row["detections"]) for row in rows], np.int32),
        ),
        "masks": ("BYTES", [count], masks),
    }
