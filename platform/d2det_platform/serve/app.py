"""The HTTP application: routes, errors and the gate before them, around a `Service`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from d2det import __version__
from d2det_platform.serve import labelstudio, native, oip_routes, page, problems, scenes
from d2det_platform.serve.labelstudio import PredictRequest, SetupRequest
from d2det_platform.serve.middleware import Gate
from d2det_platform.serve.oip import InferRequest
from d2det_platform.serve.problems import Problem
from d2det_platform.serve.schemas import DetectAnswer, ProblemAnswer
from d2det_platform.serve.service import Service

_DESCRIBED = (DetectAnswer, ProblemAnswer, InferRequest, PredictRequest, SetupRequest)
_CODES = {400: "malformed", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def create_app(service: Service, *, sends_request_id: bool = True) -> FastAPI:
    """Returns the application.

    sends_request_id: echo the request's id; not where the server around the app does that.
    """
    app = FastAPI(
        title="D2Det",
        summary="Precise detection and instance masks",
        version=__version__,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    for routes in (native, scenes, oip_routes, labelstudio, page):  # looked through in order
        app.include_router(routes.router(service))
    app.add_exception_handler(Problem, _of_problem)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_middleware(
        Gate, keys=service.keys, recorder=service.recorder, sends_request_id=sends_request_id
    )
    _describe_bodies(app)
    return app


async def _of_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return problems.response(error, request.state.request_id)


async def _of_validation(request: Request, error: Exception) -> Response:
    """What FastAPI reads itself, parts of paths, makes no sense."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:])[:80]
    problem = Problem("invalid_parameter", f"{name}: {first['msg']}", parameter=name)
    return problems.response(problem, request.state.request_id)


async def _of_http(request: Request, error: Exception) -> Response:
    """What the router refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "malformed")
    detail = "there is nothing here" if code == "not_found" else str(error.detail)
    problem = Problem(code, detail, headers=error.headers)
    return problems.response(problem, request.state.request_id)


def _describe_bodies(app: FastAPI) -> None:
    """Puts the schemas of what routes read and answer by themselves into the description."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        description = made()
        schemas = description.setdefault("components", {}).setdefault("schemas", {})
        for model in _DESCRIBED:
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        return description

    app.openapi = openapi  # type: ignore[method-assign]
