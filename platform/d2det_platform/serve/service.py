"""The endpoint without HTTP: pictures in, rows out, with limits, deadlines and measurements."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from d2det.inference.decode import DecodeError, check_header, decode_image, read_header
from d2det.inference.headers import ImageHeader
from d2det.inference.results import image_row
from d2det.inference.windows import ArrayScene
from d2det.structures import Detections
from d2det_platform.serve import problems
from d2det_platform.serve.asked import Asked, select, windows_of
from d2det_platform.serve.auth import Keys
from d2det_platform.serve.bodies import Intake, Upload
from d2det_platform.serve.courier import Courier
from d2det_platform.serve.messages import Job, Timing
from d2det_platform.serve.metrics import MemoryRecorder, Recorder
from d2det_platform.serve.model import ModelInfo
from d2det_platform.serve.options import ServeOptions
from d2det_platform.serve.problems import Problem
from d2det_platform.serve.windows import predict_scene

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

    def __post_init__(self) -> None:
        self.limits = self.options.limits
        self.intake = Intake(self.limits)

    async def detect(
        self, uploads: Sequence[Upload], asked: Asked, *, deadline: float
    ) -> list[dict[str, Any]]:
        """Returns a row for each picture; of several, one that cannot be used has an `error`.

        Raises:
            Problem: Of the request as a whole: busy, timeout, internal; or of its only picture.
        """
        self.courier.admit(len(uploads))
        tasks: list[asyncio.Task[dict[str, Any]]] = []
        try:
            if len(uploads) == 1:
                return [await self._row(uploads[0], asked, deadline, admitted=False)]
            tasks += [
                asyncio.create_task(self._row_or_error(each, asked, deadline)) for each in uploads
            ]
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            self._note()

    async def data_of(self, upload: Upload, limit: int, deadline: float) -> bytes:
        """Returns the encoded bytes of a picture, fetched where it came by address."""
        if upload.url is None:
            return upload.data
        return await self.fetch(upload.url, limit, deadline - time.monotonic())

    def row_of(self, name: str, found: Detections, asked: Asked) -> dict[str, Any]:
        """Returns the row of detections of a scene that asks for `asked`."""
        row = image_row(name, found, self.info.categories).model_dump(exclude={"error"})
        return select(row, asked, None)

    def refused(self, error: DecodeError) -> Problem:
        """Returns the problem of a picture that cannot be used, having counted it."""
        self.recorder.add("d2det_rejects", reason=error.reason)
        return problems.of_decode_error(error)

    def _note(self) -> None:
        self.recorder.add("d2det_waiting", self.courier.waiting)
        self.recorder.add("d2det_buffered_bytes", self.intake.held)
        self.recorder.add("d2det_detectors", self.courier.replicas)

    async def _row_or_error(self, upload: Upload, asked: Asked, deadline: float) -> dict[str, Any]:
        try:
            return await self._row(upload, asked, deadline, admitted=True)
        except Problem as problem:
            if problem.code not in problems.DECODE_STATUS:
                raise
            return {
                "file_name": upload.name,
                "width": None,
                "height": None,
                "detections": [],
                "error": {"reason": problem.code, "detail": problem.detail},
            }

    async def _row(
        self, upload: Upload, asked: Asked, deadline: float, *, admitted: bool
    ) -> dict[str, Any]:
        try:
            job = await self._job(upload, asked, deadline)
            if asked.tile is not None and max(job.size) > asked.tile:
                return await self._tiled(upload.name, job, asked, deadline)
            answer = await self.courier.predict(job, deadline=deadline, admitted=admitted)
        except DecodeError as error:
            raise self.refused(error) from None
        assert answer.row is not None
        row = select(answer.row, asked, self.info.max_detections)
        row["file_name"] = upload.name
        row["timing_ms"] = _timing(answer.timing)
        return row

    async def _job(self, upload: Upload, asked: Asked, deadline: float) -> Job:
        """The picture as it travels: its header is looked at here, its pixels at the detector."""
        masks = asked.masks and self.info.has_masks
        limits = self.limits.picture()
        if upload.pixels is not None:
            height, width = upload.pixels.shape[:2]
            check_header(ImageHeader("bmp", width, height), limits)
            return Job(upload.pixels, (height, width), masks=masks)
        data = await self.data_of(upload, self.limits.max_body_bytes, deadline)
        header = read_header(BytesIO(data))
        check_header(header, limits)
        return Job(data, header.size, masks=masks)

    async def _tiled(self, name: str, job: Job, asked: Asked, deadline: float) -> dict[str, Any]:
        windows = windows_of(job.size, asked, self.limits)
        pixels = job.picture
        if isinstance(pixels, bytes):
            pixels = await asyncio.to_thread(decode_image, pixels, self.limits.picture())
        found = await predict_scene(
            self.courier,
            ArrayScene(pixels),
            windows,
            masks=job.masks,
            deadline=deadline,
        )
        return await asyncio.to_thread(self.row_of, name, found, asked)


def _timing(timing: Timing) -> dict[str, float | int]:
    return {
        "queue": round(timing.queue_ms, 2),
        "decode": round(timing.decode_ms, 2),
        "infer": round(timing.infer_ms, 2),
        "post": round(timing.post_ms, 2),
        "batch": timing.batch,
    }
