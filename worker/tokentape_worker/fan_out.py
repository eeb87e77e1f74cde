"""n answers from an API that gives one to a call: n calls side by side, read as one.

Each call is made and read by a task of its own, and its chunks carry the index of its choice; they are passed on as
they come. What is counted is counted together: the usage is the sum of what each call reported last. The first call
that fails ends the others, for an answer with a choice missing is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Self

from tokentape.chunk import Usage
from tokentape.connection import end_task

from .dialects import Piece, Verdict
from .upstream_call import UpstreamCall

#: Reads that are held for a reader who is slow, of all calls together; beyond it the upstreams are held back.
_MOST_HELD: Final = 16

Open = Callable[[], AbstractAsyncContextManager[UpstreamCall]]


class FanOut:
    """Reads like one UpstreamCall. Enter it, iterate it once; after the loop, `verdict` stands."""

    def __init__(self, calls: Sequence[Open]) -> None:
        self._opens = calls
        self._held: asyncio.Queue[tuple[int, list[Piece] | None]] = asyncio.Queue(_MOST_HELD)
        self._tasks: list[asyncio.Task[Verdict]] = []
        self._usages: dict[int, Usage] = {}
        self._open_calls = len(calls)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._read(index, open_)) for index, open_ in enumerate(self._opens)]
        return self

    async def __aexit__(self, *exc: object) -> None:
        await end_task(*self._tasks)

    def __aiter__(self) -> FanOut:
        return self

    async def __anext__(self) -> list[Piece]:
        while self._open_calls:
            index, pieces = await self._held.get()
            if pieces is not None:
                return [self._counted(index, piece) for piece in pieces]
            self._open_calls -= 1
            # Raises what the call raised. Of a call that failed the verdict stands, and the others are not waited for.
            if (await self._tasks[index]).error is not None:
                break
        raise StopAsyncIteration

    @property
    def verdict(self) -> Verdict:
        """What the answers were, together: complete where each is."""
        over = (task for task in self._tasks if task.done() and not task.cancelled())
        verdicts = [task.result() for task in over if task.exception() is None]
        return Verdict(
            error=next((verdict.error for verdict in verdicts if verdict.error), None),
            finished=len(verdicts) == len(self._tasks) and all(verdict.finished for verdict in verdicts),
            sentinel=all(verdict.sentinel for verdict in verdicts),
            synthesised=any(verdict.synthesised for verdict in verdicts),
        )

    async def _read(self, index: int, open_: Open) -> Verdict:
        try:
            async with open_() as call:
                async for pieces in call:
                    await self._held.put((index, pieces))
                return call.verdict
        finally:
            await self._held.put((index, None))

    def _counted(self, index: int, piece: Piece) -> Piece:
        if piece.chunk.usage is None:
            return piece
        self._usages[index] = piece.chunk.usage
        chunk = piece.chunk.model_copy(update={"usage": _sum(list(self._usages.values()))})
        return Piece(chunk, chunk.to_json())


def _sum(usages: list[Usage]) -> Usage:
    total: dict[str, Any] = {}
    for usage in usages:
        _add(total, usage.model_dump(exclude_none=True))
    return Usage.model_validate(total)


def _add(total: dict[str, Any], counts: dict[str, Any]) -> None:
    for name, value in counts.items():
        if isinstance(value, dict):
            _add(total.setdefault(name, {}), value)
        elif isinstance(value, int) and not isinstance(value, bool):
            total[name] = total.get(name, 0) + value
