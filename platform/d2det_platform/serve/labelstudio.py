"""A Label Studio machine learning backend under /labelstudio.

Every task of a request is answered, in order. Classes for which the interface has no label are left
out and reported, in the answer and by /setup.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import urljoin

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from d2det_platform.serve import formats
from d2det_platform.serve.asked import Asked
from d2det_platform.serve.bodies import Upload
from d2det_platform.serve.deadlines import deadline_of
from d2det_platform.serve.label_config import LabelConfig, read_label_config
from d2det_platform.serve.native import as_json
from d2det_platform.serve.problems import Problem
from d2det_platform.serve.schemas import problem_responses
from d2det_platform.serve.service import Service

DEFAULT_THRESHOLD = 0.3
"""Lowest score of a box that is worth a person's look; `context.score_threshold` changes it."""
_KIND = "D2Det"


_CONFIG: Any = Field(json_schema_extra={"format": "label-config"})


def _describe_optional(schema: dict[str, Any]) -> None:
    """An interface may be left out, but not be empty."""
    schema["format"] = "label-config"
    del schema["default"]


class Task(BaseModel):
    """A task; what else Label Studio sends is ignored."""

    id: Any = None
    data: dict[str, Any]


class PredictRequest(BaseModel):
    """What Label Studio asks for."""

    tasks: list[Task] = Field(max_length=1000)
    label_config: str = _CONFIG
    params: dict[str, Any] | None = None


class SetupRequest(BaseModel):
    """What Label Studio says when a backend is connected or its interface changes."""

    project: str | None = None
    label_config: str = Field(
        default="", min_length=1, alias="schema", json_schema_extra=_describe_optional
    )


def router(service: Service) -> APIRouter:
    """Returns the routes."""
    routes = APIRouter(prefix="/labelstudio", tags=["label studio"])
    version = f"{service.info.name}-{service.info.version}"

    @routes.get("/", responses=problem_responses())
    @routes.get("/health", responses=problem_responses())
    async def health() -> dict[str, str]:
        """Says that the backend is up."""
        return {"status": "UP", "model_class": _KIND}

    @routes.post(
        "/setup",
        openapi_extra=_body(SetupRequest),
        responses=problem_responses(400, 408, 413, 415, 422, 503),
    )
    async def setup(request: Request) -> Response:
        """Takes a project's interface, and says which classes it has no label for."""
        asked = await _read(service, request, SetupRequest)
        answer: dict[str, Any] = {"model_version": version}
        if asked.label_config:
            answer["unmapped"] = _unmapped(service, read_label_config(asked.label_config))
        return as_json(answer)

    @routes.post(
        "/predict",
        openapi_extra=_body(PredictRequest),
        responses=problem_responses(400, 408, 413, 415, 422, 429, 500, 503, 504),
    )
    async def predict(request: Request) -> Response:
        """Predicts the pictures of tasks."""
        deadline = deadline_of(request, service.limits)
        asked = await _read(service, request, PredictRequest)
        config = read_label_config(asked.label_config)
        threshold = _threshold(asked.params)
        places = asyncio.Semaphore(service.options.batching.max_pictures)

        async def one(task: Task) -> dict[str, Any]:
            async with places:
                return await _predict(service, task, config, threshold, deadline)

        tasks = [asyncio.create_task(one(task)) for task in asked.tasks]
        try:
            results = list(await asyncio.gather(*tasks))
        finally:
            for each in tasks:
                each.cancel()
        for result in results:
            result["model_version"] = version
        request.state.log = {"pictures": len(results)}
        return as_json({"results": results, "unmapped": _unmapped(service, config)})

    @routes.post("/webhook", status_code=201, responses=problem_responses())
    async def webhook() -> dict[str, str]:
        """Takes note of nothing: this backend does not learn from annotations."""
        return {"status": "ignored"}

    return routes


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


async def _read(service: Service, request: Request, kind: type[Any]) -> Any:
    with service.intake.holding() as held:
        body = await service.intake.read(request, held)
        try:
            return kind.model_validate_json(body)
        except ValueError as error:
            first = error.errors()[0]  # type: ignore[attr-defined]
            place = ".".join(str(part) for part in first["loc"])
            code = "malformed" if first["type"] == "json_invalid" else "invalid_parameter"
            raise Problem(code, f"{place}: {first['msg']}".lstrip(": "), parameter=place) from None


async def _predict(
    service: Service, task: Task, config: LabelConfig, threshold: float, deadline: float
) -> dict[str, Any]:
    """The prediction of a task; one whose picture cannot be had is empty and says why."""
    asked = Asked(score_threshold=threshold, masks=False)
    try:
        upload = Upload(f"task {task.id}", url=_address(service, task, config))
        (row,) = await service.detect([upload], asked, deadline=deadline)
    except Problem as problem:
        if problem.status >= 500 or problem.code == "busy":
            raise
        return {"score": 0.0, "result": [], "error": problem.detail}
    kept = [
        {**found, "label": config.labels[found["label"].lower()]}
        for found in row["detections"]
        if found["label"].lower() in config.labels
    ]
    return formats.label_studio(
        {**row, "detections": kept},
        version="",
        from_name=config.from_name,
        to_name=config.to_name,
    )


def _address(service: Service, task: Task, config: LabelConfig) -> str:
    value = task.data.get(config.key)
    if not isinstance(value, str) or not value:
        raise Problem("invalid_parameter", f"the task has no picture under {config.key[:80]!r}")
    if value.startswith("/"):
        base = service.options.outside.label_studio_url
        if base is None:
            raise Problem("url_not_allowed", "set label_studio_url for pictures that it keeps")
        try:
            return urljoin(base, value)
        except ValueError:
            raise Problem("url_not_allowed", "the path of the picture cannot be read") from None
    return value


def _threshold(params: dict[str, Any] | None) -> float:
    context = (params or {}).get("context")
    given = context.get("score_threshold") if isinstance(context, dict) else None
    if given is None:
        return DEFAULT_THRESHOLD
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= 1:
        raise Problem("invalid_parameter", "score_threshold must be a number from 0 to 1")
    return float(given)


def _unmapped(service: Service, config: LabelConfig) -> Sequence[str]:
    return [c.name for c in service.info.categories if c.name.lower() not in config.labels]
