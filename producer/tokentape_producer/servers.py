"""The servers of queue and tapes, as a long run uses them: an outage is waited out, for minutes if need be.

It drives the same steps (`tokentape.operations`) as Client does. What it adds is that the one who waits is told, and
can stop waiting: `on_trouble` is called before each further try with what the matter is, and may raise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from redis.exceptions import AuthenticationError, ReadOnlyError, RedisError

from tokentape.connection import Server, connect, patiently
from tokentape.operations import CLIENT_SCRIPTS, Ask, Operations, Steps
from tokentape.queue import rq_job_key
from tokentape.scripts import Command
from tokentape.settings import Settings

T = TypeVar("T")

#: A job that is never submitted.
_NOBODY: Final = f"job_{'0' * 32}"

#: How long an outage in the middle of a batch is waited out.
OUTAGE_WAIT_S: Final = 600.0


class Servers:
    """Connections for one run, for one thread. Every call raises RedisUnavailable after `patience_s` seconds."""

    def __init__(self, settings: Settings, on_trouble: Callable[[str], None] | None = None) -> None:
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
        """Ask both whether they take writes, by one that changes nothing: a read-only replica would answer a PING.

        From here on outages are waited out for OUTAGE_WAIT_S.
        """
        self.queue([("PEXPIRE", rq_job_key(_NOBODY), 1)])
        self.tapes([("PEXPIRE", self.operations.tape(_NOBODY).key, 1)])
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
        trouble: Exception | None = None

        def attempt() -> T:
            nonlocal trouble
            try:
                return call()
            except (RedisError, OSError) as error:
                trouble = error
                raise

        def tell() -> None:
            # A login that is refused is not waited for.
            if self._on_trouble is not None and not isinstance(trouble, AuthenticationError):
                self._on_trouble(_words(trouble))

        return patiently(attempt, self.patience_s, tell)


def _words(trouble: Exception | None) -> str:
    """What is being waited for, for a person."""
    if isinstance(trouble, ReadOnlyError):
        return "the Redis server is a read-only replica"
    return "the Redis server does not answer"
