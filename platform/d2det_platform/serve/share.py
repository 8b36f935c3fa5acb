"""A bounded amount of something - bytes, pixels - that tasks take a part of and give back."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator


class Share:
    """First come, first served; who wants more than everything waits until all is there."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def taken(self, amount: int) -> AsyncIterator[None]:
        """Holds `amount`, or everything where that is less."""
        amount = min(amount, self.total)
        if self._waiting or self.free < amount:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((amount, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._give(amount)
                else:
                    turn.cancel()
                    self._hand_out()
                raise
        else:
            self.free -= amount
        try:
            yield
        finally:
            self._give(amount)

    def _give(self, amount: int) -> None:
        self.free += amount
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting:
            amount, turn = self._waiting[0]
            if not turn.done():
                if amount > self.free:
                    return
                self.free -= amount
                turn.set_result(None)
            self._waiting.popleft()
