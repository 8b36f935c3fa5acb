"""Work that waits goes together; nobody waits for company, and nobody who left costs anything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from d2det_platform.serve.batcher import BACKGROUND_TURN, Batcher, Full

SOON = 30.0


class Worker:
    """Runs batches when told to; remembers them."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.go = asyncio.Event()

    async def run(self, items: list[Any]) -> list[Any]:
        self.batches.append(list(items))
        await self.go.wait()
        return [f"done {item}" for item in items]


def in_a_loop(check: Callable[[Worker], Any]) -> None:
    async def run() -> None:
        await asyncio.wait_for(check(Worker()), 10)

    asyncio.run(run())


def ask(batcher: Batcher, item: Any, **options: Any) -> asyncio.Task:
    options.setdefault("deadline", time.monotonic() + SOON)
    return asyncio.create_task(batcher.submit(item, **options))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_first_runs_at_once_and_the_rest_go_together() -> None:
    async def check(worker: Worker) -> None:
        batcher = Batcher(worker.run)
        first = ask(batcher, 1)
        await settle()
        assert worker.batches == [[1]]
        rest = [ask(batcher, i) for i in (2, 3, 4)]
        await settle()
        assert batcher.waiting == 3
        worker.go.set()
        assert await first == "done 1"
        assert await asyncio.gather(*rest) == ["done 2", "done 3", "done 4"]
        assert worker.batches == [[1], [2, 3, 4]]

    in_a_loop(check)


def test_those_who_come_together_go_together_at_once() -> None:
    async def check(worker: Worker) -> None:
        worker.go.set()
        batcher = Batcher(worker.run, max_items=4)
        answers = await asyncio.gather(*(ask(batcher, i) for i in range(4)))
        assert answers == [f"done {i}" for i in range(4)]
        assert worker.batches == [[0, 1, 2, 3]]

    in_a_loop(check)


def test_a_batch_keeps_within_its_cost_and_its_kind() -> None:
    async def check(worker: Worker) -> None:
        batcher = Batcher(
            worker.run, cost=lambda item: item[1], key=lambda item: item[0], max_cost=10
        )
        items = [("a", 1), ("a", 6), ("b", 6), ("a", 5), ("a", 4), ("b", 3), ("b", 50)]
        first = ask(batcher, items[0])
        await settle()
        rest = [ask(batcher, item) for item in items[1:]]
        await settle()
        worker.go.set()
        await asyncio.gather(first, *rest)
        assert worker.batches == [
            [("a", 1)],
            [("a", 6), ("a", 4)],
            [("b", 6), ("b", 3)],
            [("a", 5)],
            [("b", 50)],  # too dear for any batch, so it is one alone
        ]

    in_a_loop(check)


def test_several_batches_are_in_flight() -> None:
    async def check(worker: Worker) -> None:
        batcher = Batcher(worker.run, in_flight=lambda: 2, max_items=1)
        asked = [ask(batcher, i) for i in range(3)]
        await settle()
        assert worker.batches == [[0], [1]]
        assert (batcher.running, batcher.waiting) == (2, 1)
        worker.go.set()
        await asyncio.gather(*asked)
        assert batcher.counts.batches == 3

    in_a_loop(check)


def test_who_leaves_while_waiting_costs_nothing() -> None:
    async def check(worker: Worker) -> None:
        batcher = Batcher(worker.run)
        first = ask(batcher, 1)
        await settle()
        gone, stays = ask(batcher, 2), ask(batcher, 3)
        await settle()
        gone.cancel()
        worker.go.set()
        await asyncio.gather(first, stays)
        assert worker.batches == [[1], [3]]
        assert batcher.counts.dropped == 1

    in_a_loop(check)


def test_a_batch_that_nobody_waits_for_any_more_is_cancelled() -> None:
    async def check(worker: Worker) -> None:
        was_cancelled = asyncio.Event()

        async def run(items: list[Any]) -> list[Any]:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                was_cancelled.set()
                raise
            return items

        batcher = Batcher(run)
        asked = [ask(batcher, 1), ask(batcher, 2)]
        await settle()
        asked[0].cancel()
        await settle()
        assert not was_cancelled.is_set()
        asked[1].cancel()
        await was_cancelled.wait()
        await settle()
        assert batcher.running == 0

    in_a_loop(check)


def test_deadlines_end_the_wait_and_free_the_place() -> None:
    async def check(worker: Worker) -> None:
        batcher = Batcher(worker.run)
        first = ask(batcher, 1)
        await settle()
        with pytest.raises(TimeoutError):
            await batcher.submit(2, deadline=time.monotonic() + 0.02)
        with pytest.raises(TimeoutError):
            await batcher.submit(3, deadline=time.monotonic() - 1)
        worker.go.set()
        await first
        assert worker.batches == [[1]]

    in_a_loop(check)


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    async def check(worker: Worker) -> None:
        batcher = Batcher(worker.run, max_items=1, max_waiting=lambda: 2)
        asked = [ask(batcher, i) for i in range(3)]
        await settle()
        assert batcher.room == 0
        with pytest.raises(Full) as refused:
            await batcher.submit(9, deadline=time.monotonic() + SOON)
        assert refused.value.retry_after_s >= 0
        asked[2].cancel()
        await settle()
        late = ask(batcher, 4)
        await settle()
        worker.go.set()
        await asyncio.gather(*asked[:2], late)
        assert batcher.counts.rejected == 1

    in_a_loop(check)


def test_background_work_waits_but_never_starves() -> None:
    async def check(worker: Worker) -> None:
        worker.go.set()
        batcher = Batcher(worker.run, max_items=1)
        background = ask(batcher, "scene", background=True)
        urgent = [ask(batcher, i) for i in range(2 * BACKGROUND_TURN)]
        await asyncio.gather(background, *urgent)
        order = [items[0] for items in worker.batches]
        assert 0 < order.index("scene") < BACKGROUND_TURN

    in_a_loop(check)


def test_an_error_reaches_all_of_its_batch_and_nobody_else() -> None:
    async def check(worker: Worker) -> None:
        async def run(items: list[Any]) -> list[Any]:
            if "bad" in items:
                raise RuntimeError("broken")
            return items

        batcher = Batcher(run, key=lambda item: item == "good")
        asked = [ask(batcher, "bad"), ask(batcher, "poor"), ask(batcher, "good")]
        bad, poor, good = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(bad, RuntimeError)
        assert isinstance(poor, RuntimeError)
        assert good == "good"

    in_a_loop(check)


def test_cancelled_from_within_is_an_error_not_a_cancellation() -> None:
    async def check(worker: Worker) -> None:
        async def run(items: list[Any]) -> list[Any]:
            raise asyncio.CancelledError

        with pytest.raises(ConnectionError):
            await Batcher(run).submit(1, deadline=time.monotonic() + SOON)

    in_a_loop(check)


def test_who_cannot_be_in_time_is_told_at_once() -> None:
    async def check(worker: Worker) -> None:
        async def run(items: list[Any]) -> list[Any]:
            await asyncio.sleep(0.1 * len(items))
            return items

        batcher = Batcher(run, max_items=1)
        await batcher.submit(0, deadline=time.monotonic() + SOON)  # it learns its speed
        asked = [ask(batcher, i) for i in range(4)]
        await settle()
        start = time.monotonic()
        with pytest.raises(Full):
            await batcher.submit(9, deadline=start + 0.2)
        assert time.monotonic() - start < 0.1
        await asyncio.gather(*asked)

    in_a_loop(check)


def test_a_cold_start_is_forgotten_with_the_first_warm_batch() -> None:
    async def check(worker: Worker) -> None:
        times = iter([0.3, 0.01, 0.01])

        async def run(items: list[Any]) -> list[Any]:
            await asyncio.sleep(next(times))
            return items

        batcher = Batcher(run)
        for item in range(2):
            await batcher.submit(item, deadline=time.monotonic() + SOON)
        assert batcher.expected_wait_s() < 0.2

    in_a_loop(check)
