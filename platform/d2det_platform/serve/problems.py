"""Everything that can go wrong, as RFC 9457 problem bodies with a code, a status and advice."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from starlette.responses import Response

from d2det.inference.headers import DecodeError, DecodeReason

MEDIA_TYPE = "application/problem+json"

STATUS: dict[str, int] = {
    "malformed": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "slow_body": 408,
    "too_large": 413,
    "unsupported_media_type": 415,
    "invalid_parameter": 422,
    "too_many_pictures": 422,
    "url_not_allowed": 422,
    "fetch_failed": 422,
    "busy": 429,
    "internal": 500,
    "not_implemented": 501,
    "unavailable": 503,
    "timeout": 504,
}
"""Code of a problem to HTTP status."""

DECODE_STATUS: dict[DecodeReason, int] = {
    "empty": 422,
    "not_image": 415,
    "unsupported_format": 415,
    "truncated": 422,
    "corrupt": 422,
    "too_many_pixels": 422,
    "too_large": 413,
    "zero_size": 422,
    "io_error": 422,
    "timeout": 504,
    "crashed": 422,
}
"""Why a picture was refused, to HTTP status."""


class Problem(Exception):  # noqa: N818 - the name RFC 9457 gives it
    """An answer that is no result.

    Attributes:
        code: One of `STATUS` or a reason of `DecodeError`.
        status: HTTP status.
        detail: One sentence for the person who sent the request.
        headers: To send along.
        members: Further members of the body, as `limit`.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.status = STATUS[code] if code in STATUS else DECODE_STATUS[code]  # type: ignore[index]
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members

    def body(self, request_id: str) -> dict[str, Any]:
        """Returns the members of the problem; `error` is for clients of the inference protocol."""
        return {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "instance": request_id,
            "code": self.code,
            "error": self.detail,
            **self.members,
        }


def of_decode_error(error: DecodeError) -> Problem:
    """Returns the problem of a picture that cannot be used."""
    return Problem(error.reason, error.detail)


def busy(detail: str, retry_after_s: float) -> Problem:
    """Returns the problem of a request that should come again after a while."""
    return Problem("busy", detail, headers={"Retry-After": _whole_seconds(retry_after_s)})


def unavailable(detail: str, retry_after_s: float) -> Problem:
    """Returns the problem of an endpoint that has no detector at the moment."""
    return Problem("unavailable", detail, headers={"Retry-After": _whole_seconds(retry_after_s)})


def response(problem: Problem, request_id: str) -> Response:
    """Returns the HTTP answer of a problem."""
    return Response(
        orjson.dumps(problem.body(request_id)),
        problem.status,
        headers=problem.headers,
        media_type=MEDIA_TYPE,
    )


def _whole_seconds(seconds: float) -> str:
    return str(max(1, round(seconds)))
