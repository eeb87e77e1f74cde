"""A server over one connection of its own: many small commands in one round trip, at the price of their bytes.

redis-py's pipeline costs 10 to 20 µs of CPU a command and more than that a round trip: half of all that a chunk cost
the worker. Here hiredis packs each command (about 1 µs), all leave as one buffer, and hiredis's reader takes the
replies, which stay as the server gave them: lists and bytes.

redis-py still makes the connection, for addresses, TLS, passwords and databases are its business. It has no public name
for the two streams of a connection; `test_packed.py` fails where a new version names them differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import hiredis
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

from tokentape.connection import AsyncServer, silence_s

from .patience import Patience

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    import redis.asyncio

    from tokentape.scripts import Command, Script

_READ_BYTES: Final = 64 * 1024
#: What the reader gives where a reply is not there yet.
_NOT_YET: Final = object()
#: Errors that somebody here tells apart by class, by the word that they begin with.
_CLASSES: Final[dict[str, type[Exception]]] = {
    "LOADING": BusyLoadingError,
    "NOSCRIPT": NoScriptError,
    "OOM": OutOfMemoryError,
    "READONLY": ReadOnlyError,
}


class PackedServer(AsyncServer):
    """As AsyncServer, for one task and its round trips, one after the other. `close` it."""

    def __init__(self, client: redis.asyncio.Redis, scripts: Sequence[Script]) -> None:
        super().__init__(client, scripts)
        self._link: _Link | None = None
        self._patience: Patience | None = None

    async def close(self) -> None:
        """Close the connection. Safe to repeat; the next command opens another."""
        link, self._link = self._link, None
        if self._patience is not None:
            self._patience.close()
        if link is not None:
            await link.connection.disconnect(nowait=True)

    async def _send(self, commands: list[Command], atomic: bool) -> list[Any]:
        if atomic:
            return await super()._send(commands, atomic)
        done = False
        self._patience = patience = self._patience or Patience()
        try:
            # Bounds the round trip as asyncio.timeout would, whose timer costs 5 µs each time.
            replies = await patience.wait(self._ask(commands), patience.now() + silence_s())
            done = True
            return replies
        finally:
            if not done:  # half of the replies may still come: the connection is of no further use
                await self.close()

    async def _ask(self, commands: list[Command]) -> list[Any]:
        if self._link is None:
            self._link = await _connected(self.client)
        return await self._link.ask(commands)


class _Link:
    """A connection, its two streams and the reader of its replies."""

    def __init__(self, connection: redis.asyncio.Connection) -> None:
        self.connection = connection
        self._from = cast("asyncio.StreamReader", connection._reader)  # noqa: SLF001 - see the module
        self._to = cast("asyncio.StreamWriter", connection._writer)  # noqa: SLF001
        self._reader = hiredis.Reader(protocolError=ConnectionError, replyError=_error, notEnoughData=_NOT_YET)

    async def ask(self, commands: list[Command]) -> list[Any]:
        """One round trip. -> the replies in order, errors among them. Raises ConnectionError where it breaks off."""
        self._to.write(b"".join([hiredis.pack_command(command) for command in commands]))
        await self._to.drain()
        replies: list[Any] = []
        while len(replies) < len(commands):
            reply = self._reader.gets()
            if reply is _NOT_YET:
                data = await self._from.read(_READ_BYTES)
                if not data:
                    raise ConnectionError("the server closed the connection")
                self._reader.feed(data)
            elif not isinstance(reply, hiredis.PushNotification):  # what nobody asked for
                replies.append(reply)
        return replies


async def _connected(client: redis.asyncio.Redis) -> _Link:
    connection = client.connection_pool.make_connection()
    await connection.connect()
    return _Link(connection)


def _error(text: str) -> Exception:
    """The exception for an error reply: one of redis-py's, with the server's text."""
    return _CLASSES.get(text.partition(" ")[0], ResponseError)(text)
