"""Pictures reach a detector although replicas die; what kills replicas is given up."""

from __future__ import annotations

import asyncio
import time

import pytest

from d2det.inference.decode import DecodeError
from d2det_platform.serve import courier as module
from d2det_platform.serve.courier import Courier, ReplicaLost
from d2det_platform.serve.messages import Answer, Job, Reply
from d2det_platform.serve.metrics import MemoryRecorder
from d2det_platform.serve.options import Batching
from d2det_platform.serve.problems import Problem


def job(data: bytes = b"picture") -> Job:
    return Job(data, (10, 10))


def soon() -> float:
    return time.monotonic() + 5


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_PAUSE_S", 0.0)


def test_a_lost_replica_costs_a_second_call_and_no_answer() -> None:
    calls: list[list[bytes]] = []

    async def call(jobs: list[Job]) -> Reply:
        calls.append([job.picture for job in jobs])
        if len(calls) == 1:
            raise ReplicaLost
        return Reply(tuple(Answer(row={"data": job.picture}) for job in jobs), "b")

    async def check() -> None:
        recorder = MemoryRecorder()
        courier = Courier(call, recorder=recorder)
        answers = await asyncio.gather(
            *(courier.predict(job(data), deadline=soon()) for data in (b"1", b"2"))
        )
        assert [answer.row["data"] for answer in answers] == [b"1", b"2"]
        assert calls[0] == [b"1", b"2"]
        assert sorted(calls[1:]) == [[b"1"], [b"2"]]
        assert recorder.total("d2det_retries") == 2

    asyncio.run(check())


def test_the_picture_that_kills_replicas_is_given_up_and_its_neighbours_are_not() -> None:
    async def call(jobs: list[Job]) -> Reply:
        if any(job.picture == b"poison" for job in jobs):
            raise ReplicaLost
        return Reply(tuple(Answer(row={}) for _ in jobs), "a")

    async def check() -> None:
        courier = Courier(call)
        good, bad = await asyncio.gather(
            courier.predict(job(), deadline=soon()),
            courier.predict(job(b"poison"), deadline=soon()),
            return_exceptions=True,
        )
        assert good == Answer(row={})
        assert isinstance(bad, DecodeError)
        assert bad.reason == "crashed"

    asyncio.run(check())


@pytest.mark.parametrize(
    ("reason", "code"),
    [("late", "timeout"), ("internal", "internal"), ("unavailable", "unavailable")],
)
def test_reasons_become_problems(reason: str, code: str) -> None:
    async def call(jobs: list[Job]) -> Reply:
        return Reply((Answer(reason=reason, detail="so"),))

    with pytest.raises(Problem) as caught:
        asyncio.run(Courier(call).predict(job(), deadline=soon()))
    assert caught.value.code == code


def test_more_replicas_take_more_calls_and_silent_ones_are_forgotten(monkeypatch) -> None:
    names = iter(["a", "b", "b"])

    async def call(jobs: list[Job]) -> Reply:
        return Reply((Answer(row={}),), next(names))

    async def check() -> None:
        courier = Courier(call)
        assert courier.replicas == 1
        for expected in (1, 2, 2):
            await courier.predict(job(), deadline=soon())
            assert courier.replicas == expected
        later = time.monotonic() + module.FORGET_REPLICA_S + 1
        monkeypatch.setattr(module.time, "monotonic", lambda: later)
        assert courier.replicas == 1

    asyncio.run(check())


def test_the_queue_is_bounded_and_says_busy_with_retry_after() -> None:
    async def check() -> None:
        go = asyncio.Event()

        async def call(jobs: list[Job]) -> Reply:
            await go.wait()
            return Reply(tuple(Answer(row={}) for _ in jobs), "a")

        batching = Batching(max_pictures=2, calls_per_replica=1, queued_calls=1)
        courier = Courier(call, batching)
        asked = [asyncio.create_task(courier.predict(job(), deadline=soon())) for _ in range(7)]
        await asyncio.sleep(0.01)
        courier_is_full = False
        try:
            courier.admit(1)
        except Problem as problem:
            courier_is_full = problem.status == 429 and int(problem.headers["Retry-After"]) >= 1
        assert courier_is_full
        go.set()
        results = await asyncio.gather(*asked, return_exceptions=True)
        refused = [r for r in results if isinstance(r, Problem)]
        assert len(refused) == 3  # two in the call, two in the queue
        assert all(problem.code == "busy" for problem in refused)

    asyncio.run(check())


def test_a_job_carries_the_time_it_has_left() -> None:
    seen: list[float] = []

    async def call(jobs: list[Job]) -> Reply:
        seen.extend(job.budget_s for job in jobs)
        return Reply(tuple(Answer(row={}) for _ in jobs))

    asyncio.run(Courier(call).predict(job(), deadline=time.monotonic() + 3))
    assert 2 < seen[0] <= 3


def test_a_request_of_many_pictures_is_let_in_when_nobody_waits() -> None:
    async def check() -> None:
        go = asyncio.Event()

        async def call(jobs: list[Job]) -> Reply:
            await go.wait()
            return Reply(tuple(Answer(row={}) for _ in jobs), "a")

        courier = Courier(call, Batching(max_pictures=2, calls_per_replica=1, queued_calls=1))
        courier.admit(16)
        asked = [
            asyncio.create_task(courier.predict(job(), deadline=soon(), admitted=True))
            for _ in range(16)
        ]
        await asyncio.sleep(0.01)
        with pytest.raises(Problem):
            courier.admit(1)
        go.set()
        assert len(await asyncio.gather(*asked)) == 16

    asyncio.run(check())


def test_calls_of_a_slow_detector_are_small_and_its_queue_is_short_in_time() -> None:
    sizes: list[int] = []

    async def call(jobs: list[Job]) -> Reply:
        sizes.append(len(jobs))
        await asyncio.sleep(0.05 * len(jobs))
        return Reply(tuple(Answer(row={}) for _ in jobs), "a")

    async def check() -> None:
        courier = Courier(call, Batching(calls_per_replica=1, queued_calls=2))
        courier._batcher.max_batch_s = 0.2
        await courier.predict(job(), deadline=soon())
        asked = [asyncio.create_task(courier.predict(job(), deadline=soon())) for _ in range(40)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert max(sizes[1:]) <= 4
        good = sum(isinstance(result, Answer) for result in results)
        assert 4 <= good <= 12  # a call of four and two that wait

    asyncio.run(check())
