"""Carries pictures to the detectors and answers back, filling calls when there is a crowd.

Predicting a picture twice is harmless, so what was on its way to a replica that died is sent
again: alone, for it may be what killed the replica. A picture that was there alone when a replica
died, and again, is given up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from d2det.inference.decode import DecodeError
from d2det_platform.serve import problems
from d2det_platform.serve.batcher import Batcher, Full
from d2det_platform.serve.messages import Answer, Job, Reply
from d2det_platform.serve.metrics import MemoryRecorder, Recorder
from d2det_platform.serve.options import Batching

logger = logging.getLogger(__name__)

Call = Callable[[list[Job]], Awaitable[Reply]]
"""Sends jobs to some detector replica."""

FORGET_REPLICA_S = 10.0
"""A replica that has not answered for this long is no longer counted on."""
ATTEMPTS_ALONE = 2
RETRY_PAUSE_S = 0.1
MAX_CALL_BYTES = 32_000_000
"""Pictures of one call, as they travel."""
CALL_S = 1.0
"""A call holds no more than takes about so long: its pictures are all answered at its end, and the
length of the queue, in calls, becomes a length in time, for fast and for slow detectors alike."""


class ReplicaLost(Exception):  # noqa: N818 - it says what happened
    """The replica died with the call, or could not be reached."""


@dataclass(frozen=True)
class _Parcel:
    job: Job
    deadline: float


class Courier:
    """Hands jobs to detectors by `call`, and knows how many jobs may wait.

    Args:
        call: raises `ReplicaLost` when the jobs may be sent again.
        batching: how calls are filled.
    """

    def __init__(
        self, call: Call, batching: Batching | None = None, recorder: Recorder | None = None
    ) -> None:
        self._call = call
        self._batching = batching or Batching()
        self._recorder: Recorder = recorder or MemoryRecorder()
        self._seen: dict[str, float] = {}
        self._batcher: Batcher[_Parcel, Answer] = Batcher(
            run=self._deliver,
            cost=lambda parcel: _bytes_of(parcel.job),
            key=lambda parcel: parcel.job.background,
            max_items=self._batching.max_pictures,
            max_cost=MAX_CALL_BYTES,
            max_batch_s=CALL_S,
            in_flight=lambda: self.replicas * self._batching.calls_per_replica,
            max_waiting=lambda: (
                self.replicas * self._batching.queued_calls * self._batcher.batch_limit
            ),
        )

    @property
    def replicas(self) -> int:
        """Detector replicas that answered of late; one where none did."""
        oldest = time.monotonic() - FORGET_REPLICA_S
        self._seen = {name: at for name, at in self._seen.items() if at > oldest}
        return max(1, len(self._seen))

    @property
    def has_heard(self) -> bool:
        """Whether any detector answered of late."""
        oldest = time.monotonic() - FORGET_REPLICA_S
        return any(at > oldest for at in self._seen.values())

    @property
    def waiting(self) -> int:
        """Pictures that wait for a call."""
        return self._batcher.waiting

    def admit(self, pictures: int) -> None:
        """Raises the problem "busy" when a request of so many pictures finds no place.

        One with more pictures than there ever are places is let in when nobody waits.
        """
        room = self._batcher.room
        if room <= 0 or (pictures > room and self._batcher.waiting):
            raise self._busy()

    async def predict(self, job: Job, *, deadline: float, admitted: bool = False) -> Answer:
        """Returns the answer of a detector.

        deadline: in seconds of `time.monotonic`.
        admitted: its request has been.

        Raises:
            Problem: busy, timeout or internal.
            DecodeError: The picture cannot be used.
        """
        parcel = _Parcel(job, deadline)
        try:
            answer = await self._batcher.submit(
                parcel, deadline=deadline, background=job.background, admitted=admitted
            )
        except Full as full:
            raise self._busy(full.retry_after_s) from None
        except TimeoutError:
            raise _late() from None
        if answer.reason is None:
            return answer
        if answer.reason == "late":
            raise _late()
        if answer.reason in problems.DECODE_STATUS:
            raise DecodeError(answer.reason, answer.detail)  # type: ignore[arg-type]
        if answer.reason == "unavailable":
            raise problems.unavailable(answer.detail, retry_after_s=2)
        raise problems.Problem("internal", answer.detail)

    def _busy(self, retry_after_s: float | None = None) -> problems.Problem:
        self._recorder.add("d2det_rejects", reason="busy")
        wait = self._batcher.expected_wait_s() if retry_after_s is None else retry_after_s
        return problems.busy("all detectors are busy and the queue is full", wait)

    async def _deliver(self, parcels: list[_Parcel]) -> Sequence[Answer]:
        try:
            return await self._send(parcels)
        except ReplicaLost:
            self._recorder.add("d2det_retries", len(parcels))
            logger.warning("a replica was lost with %d pictures; sending them alone", len(parcels))
        return await asyncio.gather(*(self._deliver_alone(parcel) for parcel in parcels))

    async def _deliver_alone(self, parcel: _Parcel) -> Answer:
        for attempt in range(ATTEMPTS_ALONE):
            await asyncio.sleep(RETRY_PAUSE_S * (attempt + 1))
            if time.monotonic() >= parcel.deadline:
                return Answer(reason="late")
            try:
                (answer,) = await self._send([parcel])
                return answer
            except ReplicaLost:
                continue
        return Answer(reason="crashed", detail="a detector was lost each time it had this picture")

    async def _send(self, parcels: Sequence[_Parcel]) -> Sequence[Answer]:
        now = time.monotonic()
        jobs = [replace(p.job, budget_s=max(p.deadline - now, 0)) for p in parcels]
        reply = await self._call(jobs)
        if reply.replica:
            self._seen[reply.replica] = time.monotonic()
        return reply.answers


def _late() -> problems.Problem:
    return problems.Problem("timeout", "the answer was not ready in time")


def _bytes_of(job: Job) -> int:
    return len(job.picture) if isinstance(job.picture, bytes) else job.picture.nbytes
