"""The ledger: all bookkeeping on the queue's server, off the event loop, many jobs in one round trip.

One thread with one connection takes what has been asked since its last round trip and sends it as one pipeline. Under
little load that is one command; under heavy load the bookkeeping of many jobs shares one round trip and one wake-up of
the loop.

Everything but `pop` may be repeated after a lost reply, and is, until the ledger is closed; a repeated pop would move
further jobs, so its caller gets the error, and reads the worker's own list instead.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from dataclasses import dataclass
from typing import Any, Final

import structlog

from tokentape.connection import TRANSIENT, Server, passing
from tokentape.scripts import Command

log: structlog.stdlib.BoundLogger = structlog.get_logger("tokentape.worker")

#: Commands in one pipeline at most: bounds how long the server is busy with one worker.
_MOST: Final = 1000


class LedgerClosed(Exception):
    """The ledger was closed before the command went through."""


@dataclass(eq=False)
class _Ask:
    commands: list[Command]
    reply: asyncio.Future[list[Any]]
    loop: asyncio.AbstractEventLoop
    repeat: bool


class Ledger:
    """Runs commands in a thread of its own. Close it only after the last reply was awaited."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._asks: queue.SimpleQueue[_Ask | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._troubled = False
        self._thread = threading.Thread(target=self._work, name="tokentape-ledger", daemon=True)
        self._thread.start()

    async def run(self, *commands: Command, repeat: bool = True) -> list[Any]:
        """-> the replies. Errors that a repetition cannot mend are raised; passing trouble only with `repeat=False`."""
        loop = asyncio.get_running_loop()
        ask = _Ask(list(commands), loop.create_future(), loop, repeat)
        self._asks.put(ask)
        return await ask.reply

    async def one(self, command: Command, *, repeat: bool = True) -> Any:
        """The same for one command."""
        (reply,) = await self.run(command, repeat=repeat)
        return reply

    def close(self) -> None:
        """Stop the thread. What still waits gets LedgerClosed."""
        self._closed.set()
        self._asks.put(None)
        self._thread.join(timeout=15)

    def _work(self) -> None:
        pending: list[_Ask] = []
        while not self._closed.is_set() or pending:
            pending += self._gather(block=not pending)
            if not pending:
                continue
            try:
                replies = self._server.run_all([command for ask in pending for command in ask.commands])
            except TRANSIENT as error:
                self._tell(error)
                pending = self._after_trouble(pending, error)
                self._closed.wait(0.1)
                continue
            except Exception as error:  # noqa: BLE001  (whoever asked gets it; the thread goes on)
                _settle([(ask, error) for ask in pending])
                pending = []
                continue
            outcomes = _by_ask(pending, replies)
            pending = [] if self._closed.is_set() else [ask for ask, outcome in outcomes if _again(ask, outcome)]
            _settle([(ask, outcome) for ask, outcome in outcomes if ask not in pending])
            if pending:
                self._tell(next(outcome for ask, outcome in outcomes if ask in pending))
                self._closed.wait(0.1)
            else:
                self._tell(None)

    def _tell(self, trouble: Exception | None) -> None:
        """Say once that the server is in trouble, and that it is so no more."""
        if trouble is not None and not self._troubled:
            log.warning("server in trouble, to be repeated", error=str(trouble) or type(trouble).__name__)
        elif trouble is None and self._troubled:
            log.info("server answers again")
        self._troubled = trouble is not None

    def _gather(self, *, block: bool) -> list[_Ask]:
        asks: list[_Ask] = []
        size = 0
        while size < _MOST:
            try:
                ask = self._asks.get(block=block and not asks)
            except queue.Empty:
                break
            if ask is None:
                break
            asks.append(ask)
            size += len(ask.commands)
        return asks

    def _after_trouble(self, pending: list[_Ask], error: Exception) -> list[_Ask]:
        if self._closed.is_set():
            _settle([(ask, LedgerClosed()) for ask in pending])
            return []
        _settle([(ask, error) for ask in pending if not ask.repeat])
        return [ask for ask in pending if ask.repeat]


def _again(ask: _Ask, outcome: Any) -> bool:
    return ask.repeat and isinstance(outcome, Exception) and passing(outcome)


def _by_ask(asks: list[_Ask], replies: list[Any]) -> list[tuple[_Ask, Any]]:
    settled: list[tuple[_Ask, Any]] = []
    start = 0
    for ask in asks:
        own = replies[start : start + len(ask.commands)]
        start += len(ask.commands)
        errors = [reply for reply in own if isinstance(reply, Exception)]
        settled.append((ask, errors[0] if errors else own))
    return settled


def _settle(settled: list[tuple[_Ask, Any]]) -> None:
    """Hand the outcomes over to their loops, with one wake-up each."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Ask, Any]]] = {}
    for ask, outcome in settled:
        by_loop.setdefault(ask.loop, []).append((ask, outcome))
    for loop, outcomes in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, outcomes)
        except RuntimeError:  # the loop is closed: nobody waits any more
            continue


def _resolve(outcomes: list[tuple[_Ask, Any]]) -> None:
    for ask, outcome in outcomes:
        if ask.reply.done():
            continue
        if isinstance(outcome, Exception):
            ask.reply.set_exception(outcome)
        else:
            ask.reply.set_result(outcome)
