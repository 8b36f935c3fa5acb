"""An endpoint without Ray: the app around an engine in this very process, and pictures for it."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import cv2
import httpx
import numpy as np
import torch
import uvicorn

from d2det.structures import Category, Detections
from d2det_platform.serve.app import create_app
from d2det_platform.serve.courier import Courier
from d2det_platform.serve.engine import Engine
from d2det_platform.serve.local import free_port
from d2det_platform.serve.messages import Job, Reply
from d2det_platform.serve.metrics import MemoryRecorder
from d2det_platform.serve.model import CallableModel, Model, ModelInfo
from d2det_platform.serve.options import ServeOptions
from d2det_platform.serve.service import Service

CATEGORIES = (Category(3, "ship"), Category(7, "plane"))


def quadrants(images: list[np.ndarray]) -> list[Detections]:
    """A model that finds two boxes wherever it looks, which tell the picture's size and colour."""
    found = []
    for image in images:
        height, width = image.shape[:2]
        boxes = [[0, 0, width / 2, height / 2], [width / 2, height / 2, width, height]]
        found.append(
            Detections(
                boxes=torch.tensor(boxes),
                scores=torch.tensor([0.9, 0.25 + float(image.mean()) / 1024]),
                labels=torch.tensor([0, 1]),
                size=(height, width),
            )
        )
    return found


quadrants.categories = CATEGORIES  # type: ignore[attr-defined]


def options(**changes: Any) -> ServeOptions:
    """Options for `quadrants`."""
    return ServeOptions(model="tests.platform.serve.endpoint:quadrants", **changes)


def jpeg(height: int = 40, width: int = 60, seed: int = 0) -> bytes:
    """A small encoded picture."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", noise)[1].tobytes()


def service_of(
    predict: Callable[..., Any] | Model = quadrants,
    *,
    given: ServeOptions | None = None,
    info: ModelInfo | None = None,
    **service: Any,
) -> tuple[Service, Engine]:
    """A service around an engine of this process, and the engine."""
    given = given or options()
    recorder = MemoryRecorder()
    model = CallableModel(predict) if callable(predict) else predict
    info = info or ModelInfo("d2det", CATEGORIES, has_masks=model.has_masks)
    engine = Engine(
        model,
        info.categories,
        batching=given.batching,
        decoding=given.limits.scene(),
        max_pixels=given.predict.batch_pixels,
        recorder=recorder,
    )

    async def call(jobs: list[Job]) -> Reply:
        return Reply(tuple(await engine.run(jobs)), "here")

    courier = Courier(call, given.batching, recorder)
    return Service(given, info, courier, recorder=recorder, **service), engine


@asynccontextmanager
async def serving(
    predict: Callable[..., Any] | Model = quadrants,
    *,
    client: tuple[str, int] = ("127.0.0.1", 1234),
    **service: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    """Yields a client of an endpoint; its service is the attribute `service`."""
    made, engine = service_of(predict, **service)
    transport = httpx.ASGITransport(create_app(made), client=client, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        http.service = made  # type: ignore[attr-defined]
        yield http
    engine.close()


@contextmanager
def listening(predict: Callable[..., Any] = quadrants, **service: Any) -> Iterator[str]:
    """Runs an endpoint on a port of its own, in a thread, and yields its address."""
    made, engine = service_of(predict, **service)
    port = free_port()
    config = uvicorn.Config(create_app(made), port=port, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)
    engine.close()
