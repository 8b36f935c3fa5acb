"""The description and the endpoint agree, whatever is sent: generated requests, every check."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterator

import hypothesis
import pytest
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from d2det_platform.serve.app import create_app
from tests.platform.serve.endpoint import jpeg, service_of
from tests.platform.serve.test_labelstudio import CONFIG

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")

CASES = int(os.environ.get("D2DET_CONTRACT_CASES", "12"))
"""Generated requests of an operation; `make contract` runs 300."""
PICTURES = st.builds(jpeg, st.integers(8, 64), st.integers(8, 64), st.integers(0, 9))

# What a schema cannot say: that bytes are a picture, or a text an interface.
for kind in ("image/jpeg", "image/png", "image/webp", "image/tiff", "image/bmp"):
    schemathesis.openapi.media_type(kind, PICTURES)
schemathesis.openapi.media_type("application/octet-stream", PICTURES)
schemathesis.openapi.format("base64-picture", PICTURES.map(lambda p: b64encode(p).decode()))
schemathesis.openapi.format("label-config", st.just(CONFIG))

SERVICE, ENGINE = service_of()
APP = create_app(SERVICE)


async def from_this_machine(scope: Scope, receive: Receive, send: Send) -> None:
    """The app, called from a client on loopback, as it must be without keys."""
    others = [(name, value) for name, value in scope.get("headers", []) if name != b"host"]
    scope |= {"client": ("127.0.0.1", 1), "headers": [*others, (b"host", b"localhost")]}
    await APP(scope, receive, send)


schema = schemathesis.openapi.from_asgi("/openapi.json", from_this_machine)


@pytest.fixture(scope="module", autouse=True)
def _counted() -> Iterator[None]:
    yield
    ENGINE.close()
    print(f"\n{SERVICE.recorder.total('d2det_requests'):.0f} generated requests")


@schema.parametrize()
@hypothesis.settings(
    max_examples=CASES,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    derandomize=True,
)
def test_requests_of_every_kind_are_answered_as_described(case) -> None:
    response = case.call()
    assert response.status_code < 500
    case.validate_response(response)
