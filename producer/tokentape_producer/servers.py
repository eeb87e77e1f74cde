"""The servers of queue and tapes, as a long run uses them: an outage is waited out, for minutes if need be.

It drives the same steps (`tokentape.operations`) as Client does. What it adds is that the one who waits is told, and
can stop waiting: `on_trouble` is called before each further try, and may raise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from tokentape.connection import Server, connect, patiently
from tokentape.operations import CLIENT_SCRIPTS, Ask, Operations, Steps
from tokentape.scripts import Command
from tokentape.settings import Settings

T = TypeVar("T")

#: How long an outage in the middle of a batch is waited out.
OUTAGE_WAIT_S: Final = 600.0


class Servers:
    """Connections for one run, for one thread. Every call raises RedisUnavailable after `patience_s` seconds."""

    def __init__(self, settings: Settings, on_trouble: Callable[[], None] | None = None) -> None:
        one_server = settings.tape_url in (None, settings.redis_url)
        self.settings = settings
        self.operations = Operations(settings, one_server)
        #: Until the first answer an outage is more likely a wrong address.
        self.patience_s = settings.redis_wait_s
        self._on_trouble = on_trouble
        self._queue = Server(connect(settings.redis_url), CLIENT_SCRIPTS)
        self._tapes = self._queue if one_server else Server(connect(settings.tape_url or ""), CLIENT_SCRIPTS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._queue.client.close()
        self._tapes.client.close()

    def reach(self) -> None:
        """Ask both for a sign of life; from here on outages are waited out for OUTAGE_WAIT_S."""
        self.queue([("PING",)])
        self.tapes([("PING",)])
        self.patience_s = max(OUTAGE_WAIT_S, self.settings.redis_wait_s)

    def queue(self, commands: list[Command], *, atomic: bool = False) -> list[Any]:
        """Run commands on the queue's server, in one round trip. -> replies, in order"""
        return self._patiently(functools.partial(self._queue.run, commands, atomic=atomic))

    def tapes(self, commands: list[Command], *, atomic: bool = False) -> list[Any]:
        """Run commands on the tapes' server, in one round trip. -> replies, in order"""
        return self._patiently(functools.partial(self._tapes.run, commands, atomic=atomic))

    def drive(self, steps: Steps[T]) -> T:
        """Carry out an operation of `tokentape.operations`."""
        try:
            ask = next(steps)
            while True:
                ask = steps.send(self._answer(ask))
        except StopIteration as done:
            result: T = done.value
            return result

    def _answer(self, ask: Ask) -> list[Any]:
        run = self.tapes if ask.server == "tape" else self.queue
        return run(ask.commands, atomic=ask.atomic)

    def _patiently(self, call: Callable[[], T]) -> T:
        return patiently(call, self.patience_s, self._on_trouble)
