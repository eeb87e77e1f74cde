"""A bound on each wait of one task, with one timer for all of them.

A stream of twenty chunks a second waits twenty times a second. `asyncio.timeout` around each wait costs about 5 µs, as
much as reading the chunk. Here a deadline that moves on is a number; the timer looks at it only when it rings, which
for a stream that flows is once per idle timeout. It is cancelled as `asyncio.timeout` cancels, with the same care for a
cancellation from elsewhere that comes at the same moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class Patience:
    """Waits of one task, one at a time. `close` it when the last one is over."""

    __slots__ = ("_deadline", "_expired", "_loop", "_task", "_timer", "_waits")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadline = 0.0
        self._expired = False
        self._task: asyncio.Task[object] | None = None  # who waits; asking for it costs 2 µs, so it is asked once
        self._waits = False
        self._timer: asyncio.TimerHandle | None = None

    def now(self) -> float:
        """The loop's clock, in seconds: what deadlines are given in."""
        return self._loop.time()

    async def wait(self, awaitable: Awaitable[T], deadline: float) -> T:
        """What the awaitable gives. Raises TimeoutError once the deadline has passed; it is cancelled then."""
        self._deadline = deadline
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._ring)
        elif deadline < self._timer.when():
            self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._ring)
        task = self._task or self._this_task()
        cancelling = task.cancelling()
        self._waits = True
        try:
            return await awaitable
        except asyncio.CancelledError:
            if self._expired and task.uncancel() <= cancelling:
                raise TimeoutError from None
            raise
        finally:
            self._waits = self._expired = False

    def close(self) -> None:
        """Let the timer go. Safe to repeat."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _this_task(self) -> asyncio.Task[object]:
        self._task = asyncio.current_task()
        if self._task is None:
            raise RuntimeError("only a task can wait")
        return self._task

    def _ring(self) -> None:
        self._timer = None
        if self._task is None or not self._waits:
            return  # nobody waits; the next wait sets a timer of its own
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._ring)
            return
        self._expired = True
        self._task.cancel()
