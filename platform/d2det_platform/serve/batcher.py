"""Puts work together that waits anyway: no wait when idle, bounded in cost, number and time.

While fewer than `in_flight` batches run, whoever comes runs at once. While all are taken, arrivals
queue, and the next batch takes the oldest and whatever of the same kind fits in with it. Those
whose caller has gone, or whose deadline has passed, are dropped before they cost anything.

The ingress uses it to fill calls to the detectors, a detector to fill batches of its network.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

RunBatch = Callable[[list[Item]], Awaitable[Sequence[Result]]]


BACKGROUND_TURN = 4
"""One batch of so many goes to background work while urgent work waits too: slow, never starved."""


class Full(Exception):  # noqa: N818 - it says what the queue is
    """The queue has no place.

    Attributes:
        retry_after_s: When there should be one again.
    """

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


@dataclass
class Entry(Generic[Item, Result]):
    """An item that waits, and the future that its caller awaits."""

    item: Item
    future: asyncio.Future[Result]
    deadline: float
    cost: float
    key: Hashable
    arrived: float
    is_background: bool = False


@dataclass
class Counts:
    """What a batcher has done so far.

    batches, items: that ran.  dropped: abandoned or late, before they cost anything.
    rejected: found the queue full.
    """

    batches: int = 0
    items: int = 0
    dropped: int = 0
    rejected: int = 0


@dataclass
class Batcher(Generic[Item, Result]):
    """Runs items in batches.

    run: carries out a batch; gives one result an item, in order, or raises for all.
    cost: of an item, in the unit of `max_cost`; a batch holds one item at least.
    key: items of different keys never share a batch.
    max_items, max_cost: of a batch.
    max_batch_s: a batch holds no more than what takes so long by the speed of late.
    in_flight: batches that may run at once, asked anew each time.
    max_waiting: items that may wait, asked anew each time.
    """

    run: RunBatch[Item, Result]
    cost: Callable[[Item], float] = lambda item: 1
    key: Callable[[Item], Hashable] = lambda item: None
    max_items: int = 16
    max_cost: float = float("inf")
    max_batch_s: float = float("inf")
    in_flight: Callable[[], int] = lambda: 1
    max_waiting: Callable[[], int] = lambda: 64
    clock: Callable[[], float] = time.monotonic
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self._urgent: deque[Entry[Item, Result]] = deque()
        self._background: deque[Entry[Item, Result]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._recent_s_per_item = 0.0
        self._running_items = 0
        self._turn = 0
        self._is_due = False

    @property
    def waiting(self) -> int:
        """Items that wait."""
        return len(self._urgent) + len(self._background)

    @property
    def room(self) -> int:
        """Items that may still come: into batches that could start at once, or into the queue."""
        self._forget_abandoned(self._urgent)
        at_once = max(0, self.in_flight() - len(self._running)) * self.batch_limit
        return at_once + self.max_waiting() - len(self._urgent)

    @property
    def batch_limit(self) -> int:
        """Items of a batch, as many as fit into `max_batch_s`."""
        if self._recent_s_per_item == 0:
            return self.max_items
        return max(1, int(min(self.max_items, self.max_batch_s / self._recent_s_per_item)))

    @property
    def running(self) -> int:
        """Batches that run."""
        return len(self._running)

    async def submit(
        self, item: Item, *, deadline: float, background: bool = False, admitted: bool = False
    ) -> Result:
        """Returns the result of an item.

        deadline: on the batcher's clock.
        background: waits behind everybody else.
        admitted: takes a place whether or not there is one.

        Raises:
            Full: There is no place in the queue, or no hope to be in time.
            TimeoutError: The deadline passed.
        """
        if not background and not admitted and (self.room <= 0 or self._is_hopeless(deadline)):
            self.counts.rejected += 1
            raise Full(self.expected_wait_s())
        loop = asyncio.get_running_loop()
        now = self.clock()
        entry: Entry[Item, Result] = Entry(
            item=item,
            future=loop.create_future(),
            deadline=deadline,
            cost=self.cost(item),
            key=self.key(item),
            arrived=now,
            is_background=background,
        )
        (self._background if background else self._urgent).append(entry)
        if (
            not self._is_due
        ):  # at the end of this turn of the loop: those who come together go together
            self._is_due = True
            loop.call_soon(self._pump)
        try:
            async with asyncio.timeout(max(deadline - now, 0)):
                return await entry.future
        finally:
            entry.future.cancel()  # nothing if it is done; else a batch finds it abandoned

    def expected_wait_s(self) -> float:
        """Returns how long an item that came now would wait, by the speed of late."""
        return (self.waiting + self._running_items + 1) * self._recent_s_per_item

    def _is_hopeless(self, deadline: float) -> bool:
        now = self.clock()
        is_busy = len(self._running) >= self.in_flight()
        return is_busy and now < deadline < now + self.expected_wait_s()

    def _pump(self) -> None:
        self._is_due = False
        while len(self._running) < self.in_flight() and (batch := self._take()):
            task = asyncio.get_running_loop().create_task(self._carry_out(batch))
            self._running.add(task)

    def _take(self) -> list[Entry[Item, Result]]:
        """The next batch: the oldest entry, and those behind it that fit in with it."""
        for queue in (self._urgent, self._background):
            self._forget_abandoned(queue)
        queue = self._next_queue()
        if not queue:
            return []
        first = queue.popleft()
        batch, cost = [first], first.cost
        left: deque[Entry[Item, Result]] = deque()
        limit = self.batch_limit
        while queue and len(batch) < limit:
            entry = queue.popleft()
            if entry.key == first.key and cost + entry.cost <= self.max_cost:
                batch.append(entry)
                cost += entry.cost
            else:
                left.append(entry)
        queue.extendleft(reversed(left))
        return batch

    def _next_queue(self) -> deque[Entry[Item, Result]]:
        """The urgent ones, but for a share of the batches while both wait."""
        self._turn += 1
        if self._background and (not self._urgent or self._turn % BACKGROUND_TURN == 0):
            return self._background
        return self._urgent

    def _forget_abandoned(self, queue: deque[Entry[Item, Result]]) -> None:
        now = self.clock()
        alive = [e for e in queue if not e.future.done() and e.deadline > now]
        if len(alive) < len(queue):
            self.counts.dropped += len(queue) - len(alive)
            queue.clear()
            queue.extend(alive)

    async def _carry_out(self, batch: list[Entry[Item, Result]]) -> None:
        self.counts.batches += 1
        self.counts.items += len(batch)
        self._running_items += len(batch)
        task = asyncio.current_task()
        assert task is not None
        remaining = {entry.future for entry in batch}

        def leave(future: asyncio.Future[Result]) -> None:
            remaining.discard(future)
            if not remaining:
                task.cancel()  # everybody has gone; nothing if the batch is done

        for entry in batch:
            entry.future.add_done_callback(leave)
        start = self.clock()
        try:
            results = await self.run([entry.item for entry in batch])
            self._learn(self.clock() - start, len(batch))
            for entry, result in zip(batch, results, strict=True):
                if not entry.future.done():
                    entry.future.remove_done_callback(leave)
                    entry.future.set_result(result)
        except asyncio.CancelledError:
            # Everybody has gone; or the run was cancelled from within, which its callers were not.
            _fail(batch, leave, ConnectionError("the batch was cancelled"))
        except Exception as error:
            _fail(batch, leave, error)
        finally:
            self._running.discard(task)
            self._running_items -= len(batch)
            self._pump()

    def _learn(self, seconds: float, items: int) -> None:
        """Seconds that an item takes when the queue is busy: slower is believed slowly, faster at
        once, so that a cold start is forgotten with the first warm batch."""
        observed = seconds / items / max(1, len(self._running))
        old = self._recent_s_per_item
        is_news = old == 0 or observed < old
        self._recent_s_per_item = observed if is_news else 0.9 * old + 0.1 * observed


def _fail(
    batch: Sequence[Entry[Item, Result]],
    leave: Callable[[asyncio.Future[Result]], None],
    error: Exception,
) -> None:
    for entry in batch:
        if not entry.future.done():
            entry.future.remove_done_callback(leave)
            entry.future.set_exception(error)
