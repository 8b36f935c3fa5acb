"""The outermost layer of the app: request ids, keys, limits on who may call, logs, last resort."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import re
import time
import uuid
from collections.abc import Iterable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from d2det_platform.serve import problems
from d2det_platform.serve.auth import Keys
from d2det_platform.serve.metrics import Recorder
from d2det_platform.serve.problems import Problem

logger = logging.getLogger("d2det_platform.serve.access")
_errors = logging.getLogger(__name__)

OPEN_PATHS = frozenset(
    {"/", "/healthz", "/readyz", "/openapi.json", "/v2/health/live", "/v2/health/ready"}
)
"""What needs no key: it tells nothing that the repository does not."""
CLIENT_GONE = 499
_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,200}")
_CHALLENGE = 'Bearer realm="d2det", Basic realm="d2det"'


class Gate:
    """Lets through who may come, and answers for whatever goes wrong inside.

    Without keys only this machine may call: replicas listen on all interfaces behind HAProxy, so
    the peer's address is looked at here; and the Host header, so that no page in a browser can
    reach in under a name of its own.
    """

    def __init__(
        self, app: ASGIApp, *, keys: Keys | None, recorder: Recorder, sends_request_id: bool
    ) -> None:
        self._app = app
        self._sends_request_id = sends_request_id
        self._keys = keys
        self._recorder = recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        headers = Headers(scope=scope)
        request_id = _request_id(headers.get("x-request-id"))
        state = scope.setdefault("state", {})
        state["request_id"], state["start"] = request_id, start
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = MutableHeaders(scope=message)
                if self._sends_request_id:
                    own["X-Request-ID"] = request_id
                own["X-Content-Type-Options"] = "nosniff"
                own.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            state["key"] = self._admit(scope, headers)
            await self._app(scope, receive, send_with_headers)
        except Problem as problem:
            await problems.response(problem, request_id)(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = CLIENT_GONE
        except asyncio.CancelledError:
            status = CLIENT_GONE
            raise
        except Exception:
            _errors.exception("request %s failed", request_id)
            if status == 0:
                last_resort = Problem("internal", "an error on the server; it has been logged")
                answer = problems.response(last_resort, request_id)
                await answer(scope, receive, send_with_headers)
        finally:
            self._note(scope, status, 1000 * (time.monotonic() - start))

    def _admit(self, scope: Scope, headers: Headers) -> str:
        """The name of the caller's key; raises unauthorized or forbidden."""
        if self._keys is None:
            if not _is_loopback(scope.get("client")) or not _is_local(headers.get("host")):
                raise Problem(
                    "forbidden", "without API keys this endpoint serves its own machine only"
                )
            return ""
        if scope["path"] in OPEN_PATHS:
            return ""
        name = self._keys.name_of(headers.get("authorization"))
        if name is None:
            self._recorder.add("d2det_rejects", reason="unauthorized")
            raise Problem(
                "unauthorized",
                "send an API key as `Authorization: Bearer KEY`, or as the password of Basic",
                headers={"WWW-Authenticate": _CHALLENGE, "Connection": "close"},
            )
        return name

    def _note(self, scope: Scope, status: int, milliseconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")  # of the table, not as asked for
        self._recorder.add("d2det_requests", route=route, status=str(status))
        self._recorder.add("d2det_request_ms", milliseconds, route=route)
        if logger.isEnabledFor(logging.INFO):
            state = scope["state"]
            entry: dict[str, Any] = {
                "request_id": state["request_id"],
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(milliseconds, 2),
                "key": state.get("key", ""),
                **state.get("log", {}),
            }
            logger.info(json.dumps(entry))


def _request_id(given: str | None) -> str:
    return given if given and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _is_loopback(client: Iterable[Any] | None) -> bool:
    if client is None:  # a Unix socket
        return True
    try:
        host = ipaddress.ip_address(next(iter(client)))
    except (ValueError, StopIteration):
        return False
    mapped = getattr(host, "ipv4_mapped", None)
    return (mapped or host).is_loopback


def _is_local(host: str | None) -> bool:
    if host is None:
        return True
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    return name.lower() in _LOCAL_HOSTS
