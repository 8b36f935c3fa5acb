"""The endpoint without HTTP: pictures in, rows out, with limits, deadlines and measurements."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from d2det.inference.decode import DecodeError, check_header, read_header
from d2det_platform.serve import problems
from d2det_platform.serve.asked import Asked, select
from d2det_platform.serve.auth import Keys
from d2det_platform.serve.bodies import Intake, Upload
from d2det_platform.serve.courier import Courier
from d2det_platform.serve.messages import Job, Timing
from d2det_platform.serve.metrics import MemoryRecorder, Recorder
from d2det_platform.serve.model import ModelInfo
from d2det_platform.serve.options import ServeOptions
from d2det_platform.serve.problems import Problem

Fetch = Callable[[str, int, float], Awaitable[bytes]]
"""Address, limit in bytes, seconds left, to the bytes there; raises Problem."""


async def _always() -> bool:
    return True


async def _no_fetch(url: str, limit: int, seconds: float) -> bytes:
    raise Problem("url_not_allowed", "this server takes no pictures by address")


@dataclass
class Service:
    """What the routes need.

    ready: whether a detector answers.
    fetch: gets pictures by address.
    """

    options: ServeOptions
    info: ModelInfo
    courier: Courier
    keys: Keys | None = None
    recorder: Recorder = field(default_factory=MemoryRecorder)
    ready: Callable[[], Awaitable[bool]] = _always
    fetch: Fetch = _no_fetch
    max_detections: int | None = None

    def __post_init__(self) -> None:
        self.limits = self.options.limits
        self.intake = Intake(self.limits)

    async def detect(
        self, uploads: Sequence[Upload], asked: Asked, *, deadline: float
    ) -> list[dict[str, Any]]:
        """Returns a row for each picture; one that cannot be used has the `error` of its problem.

        Raises:
            Problem: Of the request as a whole: busy, timeout, internal; or of its only picture.
        """
        self.courier.refuse_if_full(len(uploads))
        if len(uploads) == 1:
            return [await self._row(uploads[0], asked, deadline)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._row_or_error(u, asked, deadline)) for u in uploads]
        return [task.result() for task in tasks]

    async def _row_or_error(self, upload: Upload, asked: Asked, deadline: float) -> dict[str, Any]:
        try:
            return await self._row(upload, asked, deadline)
        except Problem as problem:
            if problem.code not in problems.DECODE_STATUS:
                raise
            error = {"reason": problem.code, "detail": problem.detail}
            return {
                "file_name": upload.name,
                "width": None,
                "height": None,
                "detections": [],
                "error": error,
            }

    async def _row(self, upload: Upload, asked: Asked, deadline: float) -> dict[str, Any]:
        try:
            data = upload.data
            if upload.url is not None:
                left = deadline - time.monotonic()
                data = await self.fetch(upload.url, self.limits.max_body_bytes, left)
            header = read_header(BytesIO(data))
            check_header(header, self.limits.picture())
            if asked.tile is not None and max(header.size) > asked.tile:
                return await self._tiled(upload.name, data, asked, deadline)
            job = Job(data, header.size, masks=asked.masks and self.info.has_masks)
            answer = await self.courier.predict(job, deadline=deadline)
        except DecodeError as error:
            self.recorder.add("d2det_rejects", reason=error.reason)
            raise problems.of_decode_error(error) from None
        assert answer.row is not None
        row = select(answer.row, asked, self.max_detections)
        row["file_name"] = upload.name
        row["timing_ms"] = _timing(answer.timing)
        return row

    async def _tiled(self, name: str, data: bytes, asked: Asked, deadline: float) -> dict[str, Any]:
        raise Problem("not_implemented", "tile is not implemented")


def _timing(timing: Timing) -> dict[str, float | int]:
    return {
        "queue": round(timing.queue_ms, 2),
        "decode": round(timing.decode_ms, 2),
        "infer": round(timing.infer_ms, 2),
        "post": round(timing.post_ms, 2),
        "batch": timing.batch,
    }
