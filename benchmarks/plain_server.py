"""What the endpoint is compared with: FastAPI under one uvicorn, a body in, its length out.

uvicorn --app-dir benchmarks plain_server:app
"""

import asyncio

import cv2
import numpy as np
from fastapi import FastAPI, Request

app = FastAPI()


@app.post("/echo")
async def echo(request: Request) -> dict[str, int]:
    return {"bytes": len(await request.body())}


def _decode(body: bytes) -> tuple[int, ...]:
    return cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR_RGB).shape


@app.post("/decode")
async def decode(request: Request) -> dict[str, int]:
    height, width, _ = await asyncio.to_thread(_decode, await request.body())
    return {"width": width, "height": height}
