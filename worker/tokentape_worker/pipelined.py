"""One connection for the tapes' small commands (claims, requests, looks), whatever the number of runs.

What is asked while a round trip is under way forms the next one, so that 500 jobs that start at once cost a few round
trips and one connection, not 500 of each.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from tokentape.connection import AsyncServer, end_task
from tokentape.scripts import Command

#: Who shares one round trip at most: requests come back in it, and it must end before a silent server is given up.
_MOST: Final = 64


class Pipelined:
    """Runs commands as AsyncServer does, together with those of everybody else."""

    def __init__(self, server: AsyncServer) -> None:
        self._server = server
        self._waiting: list[tuple[list[Command], asyncio.Future[list[Any]]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def run(self, commands: list[Command]) -> list[Any]:
        """-> the replies. Raises the first error among them, or the trouble that the round trip met."""
        reply: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append((commands, reply))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send(), name="pipelined")
        return await reply

    async def close(self) -> None:
        """End the round trip under way; nobody waits for it any more."""
        if self._sending is not None:
            await end_task(self._sending)

    async def _send(self) -> None:
        try:
            while self._waiting:
                asked, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                try:
                    replies = await self._server.run_all([command for commands, _ in asked for command in commands])
                except Exception as error:  # noqa: BLE001  (each of those who wait judges it)
                    for _, reply in asked:
                        if not reply.done():
                            reply.set_exception(error)
                    continue
                _hand_out(asked, replies)
        finally:
            self._sending = None


def _hand_out(asked: list[tuple[list[Command], asyncio.Future[list[Any]]]], replies: list[Any]) -> None:
    start = 0
    for commands, reply in asked:
        own = replies[start : start + len(commands)]
        start += len(commands)
        if reply.done():
            continue
        error = next((one for one in own if isinstance(one, Exception)), None)
        if error is not None:
            reply.set_exception(error)
        else:
            reply.set_result(own)
