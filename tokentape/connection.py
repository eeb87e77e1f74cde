"""Two thin ways to a server, blocking and asyncio: run commands in one round trip, load scripts where they are missing.

Everything that this project sends may be repeated: a reply that was lost is answered by sending again.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import hiredis
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)
from redis.retry import Retry

from .errors import ConfigError, RedisUnavailable, TokentapeError
from .masking import shown
from .scripts import Command, Dialect, Script

T = TypeVar("T")

#: Passing trouble: the same command may go through later.
TRANSIENT: Final = (ConnectionError, TimeoutError, BusyLoadingError, ReadOnlyError, OSError)

#: What servers say of trouble of theirs that passes; redis-py has classes for a few of them only.
_PASSING: Final = (
    "LOADING",
    "READONLY",
    "MISCONF",
    "BUSY",
    "MASTERDOWN",
    "NOREPLICAS",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "UNBLOCKED",
)

#: Scripts that are not there are loaded; once more where running them shows that the server refuses the flags line.
_LOADS: Final = 2

#: A server that accepts a connection and then says nothing is given up after this long.
_SILENCE_S: Final = 10.0


def connect(url: str) -> redis.Redis:
    """A blocking client for a URL; it connects when first used. Raises ConfigError for a URL that is none."""
    with _address_errors(url):
        client = redis.Redis.from_url(url, **_options())
        _try_out(client.connection_pool)
        return client


def connect_async(url: str) -> redis.asyncio.Redis:
    """The same for asyncio."""
    with _address_errors(url):
        client = redis.asyncio.Redis.from_url(url, **_options(for_asyncio=True))
        _try_out(client.connection_pool)
        return client


@contextlib.contextmanager
def _address_errors(url: str) -> Iterator[None]:
    try:
        yield
    except TypeError as error:  # of the connection's class, for what stands in the query
        name = re.search(r"argument '(\w+)'", str(error))
        what = f"{name[1]!r}" if name else "of such a name"
        raise ConfigError(f"{shown(url)}: redis-py has no parameter {what} for it") from error
    except ValueError as error:
        raise ConfigError(f"{shown(url)}: {error}") from error


def _try_out(pool: Any) -> None:
    """Make a connection, and open none: a pool does that with its first command, far from whoever set the address."""
    pool.connection_class(**pool.connection_kwargs)


def _options(*, for_asyncio: bool = False) -> dict[str, Any]:
    retry = redis.asyncio.retry.Retry(NoBackoff(), 0) if for_asyncio else Retry(NoBackoff(), 0)
    # redis-py's own timeout for asyncio goes through asyncio.wait_for, which up to Python 3.11 swallows a cancellation
    # that comes while it sends. AsyncServer bounds the whole round trip instead.
    silence_s = None if for_asyncio else _SILENCE_S
    return {
        "socket_timeout": silence_s,
        "socket_connect_timeout": 5.0,
        "retry": retry,
        "health_check_interval": 0,
        # redis-py's own limit is 100, and it refuses the next call instead of waiting.
        "max_connections": 10_000,
    }


def passing(error: BaseException) -> bool:
    """Whether the same command may go through later. A server whose memory is full is its caller's to judge."""
    if isinstance(error, OutOfMemoryError):
        return False
    return isinstance(error, TRANSIENT) or (isinstance(error, ResponseError) and str(error).startswith(_PASSING))


class Server:
    """One server over a blocking client. Thread-safe, as the client's pool is."""

    def __init__(self, client: redis.Redis, scripts: Sequence[Script]) -> None:
        self.client = client
        self._dialect = Dialect(tuple(scripts))

    def run(self, commands: list[Command], *, atomic: bool = False) -> list[Any]:
        """Run commands in one round trip; `atomic` wraps them in MULTI and EXEC. -> replies, in order.

        Raises the first error that any of them got.
        """
        return _checked(self.run_all(commands, atomic=atomic))

    def run_all(self, commands: list[Command], *, atomic: bool = False) -> list[Any]:
        """The same, with errors standing among the replies."""
        replies = self._send(self._dialect.adapt(commands), atomic)
        for _ in range(_LOADS):
            if not self._dialect.wants_loading(replies):
                break
            while not self._dialect.loaded(self._send(self._dialect.loading(), False)):
                pass
            replies = self._send(self._dialect.adapt(commands), atomic)
        return replies

    def run_durably(self, commands: list[Command], wait_s: float) -> list[Any]:
        """Run them as one transaction, then wait until the server's append-only file holds it."""
        with self.client.client() as connection:
            replies = Server(connection, self._dialect.scripts).run(commands, atomic=True)
            try:
                _check_durable(connection.execute_command("WAITAOF", 1, 0, round(wait_s * 1000)), wait_s)
            except ResponseError as error:
                _check_durable_error(error)
        return replies

    def _send(self, commands: list[Command], atomic: bool) -> list[Any]:
        with self.client.pipeline(transaction=atomic) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return list(pipe.execute(raise_on_error=False))


class AsyncServer:
    """One server over an asyncio client, with the same methods."""

    def __init__(self, client: redis.asyncio.Redis, scripts: Sequence[Script]) -> None:
        self.client = client
        self._dialect = Dialect(tuple(scripts))

    async def run(self, commands: list[Command], *, atomic: bool = False) -> list[Any]:
        """See Server.run."""
        return _checked(await self.run_all(commands, atomic=atomic))

    async def run_all(self, commands: list[Command], *, atomic: bool = False) -> list[Any]:
        """See Server.run_all."""
        replies = await self._send(self._dialect.adapt(commands), atomic)
        for _ in range(_LOADS):
            if not self._dialect.wants_loading(replies):
                break
            while not self._dialect.loaded(await self._send(self._dialect.loading(), False)):
                pass
            replies = await self._send(self._dialect.adapt(commands), atomic)
        return replies

    async def run_durably(self, commands: list[Command], wait_s: float) -> list[Any]:
        """See Server.run_durably."""
        async with self.client.client() as connection:
            replies = await AsyncServer(connection, self._dialect.scripts).run(commands, atomic=True)
            try:
                _check_durable(await connection.execute_command("WAITAOF", 1, 0, round(wait_s * 1000)), wait_s)
            except ResponseError as error:
                _check_durable_error(error)
        return replies

    async def wait_for(self, command: Command, block_ms: int) -> Any:
        """Run a command that blocks in the server for up to `block_ms`. -> its reply

        On a client of one connection it is packed by hiredis: a read of 200 tapes has 400 words, which redis-py's
        asyncio client takes 600 µs to write down, and hiredis 40.
        """
        async with asyncio.timeout(block_ms / 1000 + _SILENCE_S):
            connection = self.client.connection
            if connection is None:
                return await self.client.execute_command(*command)
            await connection.send_packed_command(hiredis.pack_command(command))
            reply = await connection.read_response()
        understood = self.client.response_callbacks.get(command[0])
        return understood(reply) if understood else reply

    async def _send(self, commands: list[Command], atomic: bool) -> list[Any]:
        # Its TimeoutError is an OSError: passing trouble.
        async with asyncio.timeout(_SILENCE_S), self.client.pipeline(transaction=atomic) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return list(await pipe.execute(raise_on_error=False))


def unavailable(error: Exception) -> RedisUnavailable:
    """What a server's trouble is to a caller who can wait no longer."""
    refused = isinstance(error, AuthenticationError)
    if refused:
        said = (
            f"Redis refuses the login: {_words(error)}; give the right user and password in the address, or the"
            " password by TOKENTAPE_REDIS_PASSWORD_FILE"
        )
    elif isinstance(error, ReadOnlyError):
        said = "Redis is a read-only replica here; name the primary"
    elif isinstance(error, BusyLoadingError):
        said = "Redis is still loading its data; try again soon"
    else:
        said = f"Redis does not answer: {_words(error)}; is the server running?"
    return RedisUnavailable(said, login_refused=refused)


def refused(error: Exception) -> TokentapeError:
    """What a server's refusal is to a caller, where repeating does not mend it."""
    if isinstance(error, OutOfMemoryError):
        return TokentapeError(
            "Redis has no memory left: raise its maxmemory, or wait until tapes expire (TOKENTAPE_RETENTION_S)"
        )
    return TokentapeError(f"Redis refused: {_words(error)}")


def _words(error: Exception) -> str:
    """What the server said, without the place in one of our scripts where it said it."""
    return str(error).partition(" script: ")[0].rstrip(".") or type(error).__name__


def silence_s() -> float:
    """How long a round trip may take before the server is given up."""
    return _SILENCE_S


class Patience:
    """How long a call goes on trying while a server is away. The waits between grow to a quarter of a second."""

    def __init__(self, wait_s: float) -> None:
        self._until = time.monotonic() + wait_s
        self._pause_s = 0.02

    def pause_s(self, error: Exception) -> float:
        """How long to wait before the next try. Raises RedisUnavailable when there is none, as for a wrong password."""
        if time.monotonic() + self._pause_s >= self._until or isinstance(error, AuthenticationError):
            raise unavailable(error) from error
        self._pause_s = min(0.25, self._pause_s * 2)
        return self._pause_s


def patiently(call: Callable[[], T], wait_s: float, on_trouble: Callable[[], None] | None = None) -> T:
    """Repeat a call through passing trouble, of which `on_trouble` is told.

    Raises RedisUnavailable when `wait_s` is over, TokentapeError for what a repetition cannot mend.
    """
    patience = Patience(wait_s)
    while True:
        try:
            return call()
        except (RedisError, OSError) as error:
            if not passing(error):
                raise refused(error) from error
            if on_trouble is not None:
                on_trouble()
            time.sleep(patience.pause_s(error))


async def patiently_async(
    call: Callable[[], Awaitable[T]], wait_s: float, on_trouble: Callable[[], None] | None = None
) -> T:
    """The same for asyncio."""
    patience = Patience(wait_s)
    while True:
        try:
            return await call()
        except (RedisError, OSError) as error:
            if not passing(error):
                raise refused(error) from error
            if on_trouble is not None:
                on_trouble()
            await asyncio.sleep(patience.pause_s(error))


async def end_task(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have ended, whatever they raise.

    Asked again until it is done: a library may swallow a cancellation, as asyncio.wait_for did up to Python 3.11.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # asked for, or asyncio complains that nobody has


def _checked(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def _check_durable(reply: Any, wait_s: float) -> None:
    if not reply or int(reply[0]) < 1:
        raise RedisUnavailable(f"the server did not confirm its append-only file within {wait_s:g} s; submit again")


def _check_durable_error(error: ResponseError) -> None:
    if "unknown command" in str(error).lower():
        return  # before Redis 7.2: there is nothing to wait with
    raise TokentapeError(f"durable=True needs a server with an append-only file: {error}") from error
