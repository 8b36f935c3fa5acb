"""A detector at work: decodes ahead, batches by shape and pixels, predicts in threads.

Plain Python: a detector replica holds one, tests and small programs may do so too. Neither decoding
nor the network ever runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from d2det.inference.decode import DecodeError, decode_image
from d2det.inference.limits import DecodeLimits
from d2det.inference.results import image_row
from d2det.structures import Category, Detections
from d2det_platform.serve.batcher import Batcher
from d2det_platform.serve.messages import Answer, Job, Timing
from d2det_platform.serve.metrics import MemoryRecorder, Recorder
from d2det_platform.serve.model import Model
from d2det_platform.serve.options import Batching
from d2det_platform.serve.share import Share

logger = logging.getLogger(__name__)

TRIAL_SIZE = (64, 64)
"""Height and width of the made picture of a health check."""


@dataclass(frozen=True)
class _Ready:
    """A picture that may be predicted; image: (H, W, 3) uint8 RGB, or bytes for who wants them."""

    image: NDArray[np.uint8] | bytes
    job: Job
    decode_ms: float
    since: float


class Engine:
    """Predicts jobs with one model.

    Args:
        model: loaded detector.
        categories: of its labels.
        batching: how pictures are put together.
        decoding: what a picture may be.
        max_pixels: of a batch, after resizing.
    """

    def __init__(
        self,
        model: Model,
        categories: Sequence[Category],
        *,
        batching: Batching | None = None,
        decoding: DecodeLimits | None = None,
        max_pixels: float = 4_000_000,
        recorder: Recorder | None = None,
    ) -> None:
        self.batching = batching or Batching()
        self._model = model
        self._categories = tuple(categories)
        self._decoding = decoding or DecodeLimits()
        self._recorder: Recorder = recorder or MemoryRecorder()
        self._reads_encoded = bool(getattr(model, "reads_encoded", False))
        in_flight = self.batching.batches_in_flight or (2 if _on_gpu(model) else 1)
        self._decoders = ThreadPoolExecutor(self.batching.decode_threads, "decode")
        self._network = ThreadPoolExecutor(in_flight, "network")
        self._decoded = Share(self.batching.max_decoded_pixels)
        self._batcher: Batcher[_Ready, Answer] = Batcher(
            run=self._run_batch,
            cost=lambda ready: model.cost(*ready.job.size),
            key=self._key,
            max_items=self.batching.max_pictures,
            max_cost=max_pixels,
            in_flight=lambda: in_flight,
        )
        self._started: dict[object, float] = {}
        self._last_success = time.monotonic()

    async def run(self, jobs: Sequence[Job]) -> list[Answer]:
        """Returns the answer of each job, in order; jobs of several calls share batches."""
        return list(await asyncio.gather(*(self._answer(job) for job in jobs)))

    def warm_up(self, budget_s: float) -> int:
        """Runs the model on every shape it knows and returns how many that were.

        The usual ones always, the others until `budget_s` is over. The first runs of a shape are
        slow: kernels are chosen and memory is mapped.
        """
        start, done = time.monotonic(), 0
        for i, (height, width) in enumerate(self._model.warm_up_sizes()):
            if i >= USUAL and time.monotonic() - start > budget_s:
                break
            picture = _made_picture(height, width)
            self._model.predict([picture], masks=self._model.has_masks)
            done += 1
        self._last_success = time.monotonic()
        return done

    async def check(self, *, idle_s: float, hang_s: float) -> None:
        """Tries the model, unless it has just shown that it works.

        Raises:
            RuntimeError: A batch has been running for `hang_s`, or the model fails.
        """
        now = time.monotonic()
        if any(now - started > hang_s for started in self._started.values()):
            raise RuntimeError(f"a batch has been running for more than {hang_s} s")
        if now - self._last_success < idle_s or self._started or self._reads_encoded:
            return
        picture = _made_picture(*TRIAL_SIZE)
        answer = await self._answer(Job(picture, TRIAL_SIZE, budget_s=hang_s, raw=True))
        if answer.found is None:
            raise RuntimeError(f"the model fails on a trial: {answer.reason} {answer.detail}")
        if not bool(torch.isfinite(answer.found.boxes).all()):
            raise RuntimeError("the model finds boxes that are no numbers")

    def close(self) -> None:
        """Ends the threads when they have finished what they do."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._network.shutdown(wait=False, cancel_futures=True)

    def _key(self, ready: _Ready) -> Hashable:
        return self._model.bucket(*ready.job.size), ready.job.masks, ready.job.background

    async def _answer(self, job: Job) -> Answer:
        deadline = time.monotonic() + job.budget_s
        pixels = job.size[0] * job.size[1]
        async with self._decoded.taken(pixels):
            if time.monotonic() >= deadline:
                return Answer(reason="late", detail="no time was left for it")
            try:
                image, decode_ms = await self._decode(job)
                ready = _Ready(image, job, decode_ms, time.monotonic())
                return await self._batcher.submit(
                    ready,
                    deadline=deadline,
                    background=job.background,
                    admitted=True,  # callers are counted before they get here
                )
            except DecodeError as error:
                return Answer(reason=error.reason, detail=error.detail)
            except TimeoutError:
                return Answer(reason="late", detail="no time was left for it")

    async def _decode(self, job: Job) -> tuple[NDArray[np.uint8] | bytes, float]:
        if self._reads_encoded or not isinstance(job.picture, bytes):
            return job.picture, 0.0
        loop = asyncio.get_running_loop()
        image, decode_ms = await loop.run_in_executor(
            self._decoders, _timed_decode, job.picture, self._decoding
        )
        self._recorder.add("d2det_decode_ms", decode_ms)
        return image, decode_ms

    async def _run_batch(self, batch: list[_Ready]) -> Sequence[Answer]:
        token = object()
        self._started[token] = time.monotonic()
        try:
            loop = asyncio.get_running_loop()
            answers = await loop.run_in_executor(self._network, self._predict, batch)
        finally:
            del self._started[token]
        self._note(batch, answers)
        return answers

    def _predict(self, batch: list[_Ready]) -> list[Answer]:
        """Carried out in a thread of the network."""
        start = time.monotonic()
        try:
            found = self._model.predict([ready.image for ready in batch], masks=batch[0].job.masks)
            if len(found) != len(batch):
                raise RuntimeError(f"{len(found)} results for {len(batch)} pictures")
        except Exception:
            if len(batch) > 1:  # one bad apple: the others are tried without it
                return [answer for ready in batch for answer in self._predict([ready])]
            logger.exception("the model failed on a picture of %s", batch[0].job.size)
            return [Answer(reason="internal", detail="the model failed on this picture")]
        infer_ms = _ms_since(start)
        middle = time.monotonic()
        answers = [
            self._as_answer(ready.job, each) for ready, each in zip(batch, found, strict=True)
        ]
        post_ms = _ms_since(middle)
        return [
            replace(
                answer,
                timing=Timing(
                    queue_ms=1000 * (start - ready.since),
                    decode_ms=ready.decode_ms,
                    infer_ms=infer_ms,
                    post_ms=post_ms,
                    batch=len(batch),
                ),
            )
            for ready, answer in zip(batch, answers, strict=True)
        ]

    def _as_answer(self, job: Job, found: Detections) -> Answer:
        if job.raw:
            return Answer(found=found)
        row: dict[str, Any] = image_row("", found, self._categories).model_dump(
            exclude={"file_name", "error"}
        )
        return Answer(row=row)

    def _note(self, batch: Sequence[_Ready], answers: Sequence[Answer]) -> None:
        record = self._recorder.add
        if any(answer.reason is None for answer in answers):
            self._last_success = time.monotonic()
        record("d2det_batch_pictures", len(batch))
        record("d2det_pictures", len(batch))
        record("d2det_pixels", sum(r.job.size[0] * r.job.size[1] for r in batch))
        record("d2det_infer_ms", answers[0].timing.infer_ms)
        record("d2det_post_ms", answers[0].timing.post_ms)
        record("d2det_queue_ms", max(answer.timing.queue_ms for answer in answers))


USUAL = 7
"""Sizes at the head of a model's list that are warmed up however long they take."""


def _timed_decode(data: bytes, limits: DecodeLimits) -> tuple[NDArray[np.uint8], float]:
    start = time.monotonic()
    return decode_image(data, limits), _ms_since(start)


def _ms_since(start: float) -> float:
    return 1000 * (time.monotonic() - start)


def _made_picture(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _on_gpu(model: Model) -> bool:
    device = getattr(model, "device", None)
    return device is not None and device.type == "cuda"
