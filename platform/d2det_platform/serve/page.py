"""The page at /: one file, nothing from elsewhere, so it works where there is no internet."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

from d2det_platform.serve.service import Service


def router(service: Service) -> APIRouter:
    """Returns the route."""
    routes = APIRouter()
    text = files("d2det_platform.serve").joinpath("page.html").read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": policy(text), "Referrer-Policy": "no-referrer"}

    @routes.get("/", include_in_schema=False)
    async def page() -> Response:
        """Returns the page."""
        return Response(text, media_type="text/html; charset=utf-8", headers=headers)

    return routes


def policy(text: str) -> str:
    """Returns the Content-Security-Policy of a page: its own script and style, nothing else."""
    script, style = (
        "sha256-" + base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        for part in (_inside("script", text), _inside("style", text))
    )
    return (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _inside(tag: str, text: str) -> str:
    match = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    assert match is not None, f"the page has no <{tag}>"
    return match[1]
