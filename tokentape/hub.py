"""The hub: one shared blocking read for all the tapes that a process follows.

A follower first reads what stands on its tape by itself, page by page. Once it has caught up it joins the hub, which
holds one XREAD over all joined tapes and hands the rows to the feeds. A follower leaves the hub, and reads by
itself again, whenever its feed closes:

    behind      its buffer is full: a slow follower reads at its own pace and slows nobody else
    broken      the connection was lost: it must look whether its attempt still stands
    closed      the client is being closed

A read that is under way does not know of a tape that joined meanwhile. So every read also covers a stream of the hub's
own, and joining adds an entry to it: the read returns at once, and the next one covers the newcomer. It needs no
permission but those on the namespace, and leaves no race between looking and blocking.

All reads go through one connection, so that a failover does not pass unnoticed between two of them. Between a
follower's last look and the hub's first read it may: so a feed begins `unsure`, and is again when a connection was
opened, and its follower looks once more whether its attempt stands before it takes what came.

`Board` is the part without I/O; `ThreadHub` and `TaskHub` drive it for Client and AsyncClient.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

import redis
import redis.asyncio
from redis.exceptions import RedisError

from .connection import AsyncServer, Server, end_task
from .errors import CorruptTape
from .scripts import Command
from .tape import Entry, Position, Tape, decode_entry, text_of

Reason = Literal["behind", "broken", "closed"]
Row = tuple[Any, Any]

#: How long one read blocks. Bounds how long a thread takes to notice that it should stop.
BLOCK_MS: Final = 2000
#: Entries of one tape that one read returns at most.
READ_COUNT: Final = 500


class Feed:
    """What the hub hands to one follower: the entries after the position it joined at."""

    def __init__(self, tape: Tape, after: Position, limit_bytes: int, wake: Callable[[], None]) -> None:
        self.tape = tape
        self.after = after
        self.closed: Reason | None = None
        #: What comes may be of another attempt than the follower's. Its follower sets it to False, then looks.
        self.unsure = True
        self._entries: deque[Entry] = deque()
        self._bytes = 0
        self._limit_bytes = limit_bytes
        self._wake = wake

    def put(self, entries: list[Entry]) -> bool:
        """Take what comes after the feed's position. -> False where that overfills it: it is closed then."""
        for entry in entries:
            if entry.position > self.after:
                self.after = entry.position
                self._entries.append(entry)
                self._bytes += len(entry.raw)
        if self._bytes > self._limit_bytes:
            self.closed = "behind"
        self._wake()
        return self.closed is None

    def close(self, reason: Reason) -> None:
        self.closed = self.closed or reason
        self._wake()

    def take(self) -> list[Entry]:
        """The entries that have come since."""
        entries: list[Entry] = []
        while self._entries:
            entry = self._entries.popleft()
            self._bytes -= len(entry.raw)
            entries.append(entry)
        return entries


class Board:
    """Which tapes are read, from where, and for whom."""

    def __init__(self, namespace: str, block_ms: int = BLOCK_MS) -> None:
        self.wake_key = f"{namespace}:wake:{secrets.token_hex(8)}"
        self._block_ms = block_ms
        self._wake_after = "0-0"
        self._feeds: dict[str, list[Feed]] = {}
        #: Where the read that is under way began, by key: what it returns is no use to a feed that stands before.
        self._asked: dict[str, Position] = {}
        self._ids: dict[str, str] = {}  # the same as text
        #: The tapes that are not read from there any more. The others, nearly all, cost the next read nothing.
        self._moved: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._feeds)

    def join(self, feed: Feed) -> None:
        self._feeds.setdefault(feed.tape.key, []).append(feed)
        self._moved.add(feed.tape.key)

    def leave(self, feed: Feed) -> None:
        feeds = self._feeds.get(feed.tape.key, [])
        if feed in feeds:
            feeds.remove(feed)
        if not feeds:
            self._feeds.pop(feed.tape.key, None)
        self._moved.add(feed.tape.key)

    def wake(self) -> list[Command]:
        """Makes the read that is under way return. The key goes by itself, also after a crash."""
        return [("XADD", self.wake_key, "MAXLEN", 1, "*", "woken", "1"), ("PEXPIRE", self.wake_key, 3_600_000)]

    def read(self) -> Command:
        """The next read: every tape from where its hindmost follower stands."""
        for key in self._moved:
            if feeds := self._feeds.get(key):
                self._asked[key] = position = min(feed.after for feed in feeds)
                self._ids[key] = str(position)
            else:
                self._asked.pop(key, None)
                self._ids.pop(key, None)
        self._moved.clear()
        head = ("XREAD", "COUNT", READ_COUNT, "BLOCK", self._block_ms, "STREAMS", self.wake_key)
        return (*head, *self._asked, self._wake_after, *self._ids.values())

    def deliver(self, reply: Any) -> None:
        """Hand out what a read returned."""
        if not reply:
            return
        for name, found in reply.items() if isinstance(reply, dict) else reply:
            key = text_of(name)
            rows = found[0] if isinstance(found[0], list) else found  # RESP3 wraps the rows once more
            if key == self.wake_key:
                self._wake_after = text_of(rows[-1][0])
            elif key in self._feeds:
                self._moved.add(key)
                self._hand_out(key, rows)

    def _hand_out(self, key: str, rows: list[Row]) -> None:
        feeds = [feed for feed in self._feeds[key] if feed.after >= self._asked[key]]
        if not feeds:
            return
        try:
            entries = [decode_entry(feeds[0].tape.job_id, row) for row in rows]
        except CorruptTape:
            # Each follower meets it again when it reads by itself, and raises it where it can be caught.
            for feed in list(self._feeds[key]):
                feed.close("broken")
                self.leave(feed)
            return
        for feed in feeds:
            if not feed.put(entries):
                self.leave(feed)

    def opened(self) -> None:
        """The reads go over a new connection, perhaps to another server."""
        for feeds in self._feeds.values():
            for feed in feeds:
                feed.unsure = True

    def close_all(self, reason: Reason) -> None:
        for feeds in self._feeds.values():
            for feed in feeds:
                feed.close(reason)
        self._moved.update(self._feeds)
        self._feeds.clear()


def block_ms_for(client: redis.Redis | redis.asyncio.Redis) -> int:
    """How long a read may block on this client: well below its socket timeout, where it has one."""
    timeout_s = client.connection_pool.connection_kwargs.get("socket_timeout")
    return max(1, min(BLOCK_MS, int(timeout_s * 500))) if timeout_s else BLOCK_MS


@contextlib.contextmanager
def _told_of_reconnects(connection: Any, opened: Callable[[Any], None]) -> Iterator[None]:
    """Call `opened`, a bound method, whenever redis-py opens the connection again.

    Ours is not: its loss is an error. A client that was given to us may be set to repeat what failed, unasked.
    """
    connection.register_connect_callback(opened)
    try:
        yield
    finally:
        connection.deregister_connect_callback(opened)


class ThreadHub:
    """The hub of a blocking client: one daemon thread, there while anybody follows."""

    def __init__(self, server: Server, namespace: str, limit_bytes: int) -> None:
        self._server = server
        self._board = Board(namespace, block_ms_for(server.client))
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._running = False
        # Of the last thread. Not the thread itself: an interrupt (Ctrl-C) while one is started leaves a Thread that
        # runs and cannot be joined, and a thread that still reads when the interpreter ends may crash it.
        self._ended = threading.Event()
        self._ended.set()
        self._closed = False
        self._pid = os.getpid()

    @property
    def forked(self) -> bool:
        """Whether this is a forked child's copy. Its thread stayed in the parent, where its lock may be held, too."""
        return self._pid != os.getpid()

    def join(self, tape: Tape, after: Position) -> tuple[Feed, threading.Event]:
        """A feed from a position on, and the event that is set when there is something in it."""
        event = threading.Event()
        feed = Feed(tape, after, self._limit_bytes, event.set)
        with self._lock:
            if self._closed:
                feed.close("closed")
                return feed, event
            self._board.join(feed)
            running, self._running = self._running, True
            if not running:
                self._ended = ended = threading.Event()
                threading.Thread(target=self._run, args=(ended,), name="tokentape-hub", daemon=True).start()
        if running:
            with contextlib.suppress(RedisError, OSError):  # the reader meets the same trouble, and closes the feed
                self._server.run(self._board.wake())
        return feed, event

    def leave(self, feed: Feed) -> None:
        if self.forked:
            return
        with self._lock:
            self._board.leave(feed)

    def close(self) -> None:
        if self.forked:
            return
        with self._lock:
            self._closed = True
            self._board.close_all("closed")
        if not self._ended.is_set():
            with contextlib.suppress(RedisError, OSError):
                self._server.run(self._board.wake())
            self._ended.wait(timeout=BLOCK_MS / 1000 + 1)

    def _run(self, ended: threading.Event) -> None:
        try:
            self._serve()
        finally:
            ended.set()

    def _serve(self) -> None:
        while self._followed():
            try:
                with self._server.client.client() as reading:
                    self._read(reading)
            except (RedisError, OSError):
                with self._lock:
                    self._board.close_all("broken")
        with contextlib.suppress(RedisError, OSError):
            self._server.client.delete(self._board.wake_key)

    def _followed(self) -> bool:
        """Whether to go on. Where not, the next follower starts another thread."""
        with self._lock:
            self._running = bool(self._board)
            return self._running

    def _read(self, reading: redis.Redis) -> None:
        """Read on one connection until nobody follows, or until it is lost."""
        with _told_of_reconnects(reading.connection, self._opened):
            while True:
                with self._lock:
                    if not self._board:
                        return
                    command = self._board.read()
                reply = reading.execute_command(*command)
                with self._lock:
                    self._board.deliver(reply)

    def _opened(self, _connection: object) -> None:
        with self._lock:
            self._board.opened()


class TaskHub:
    """The hub of an asyncio client: one task, there while anybody follows."""

    def __init__(self, server: AsyncServer, namespace: str, limit_bytes: int) -> None:
        self._server = server
        self._board = Board(namespace, block_ms_for(server.client))
        self._limit_bytes = limit_bytes
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def join(self, tape: Tape, after: Position) -> tuple[Feed, asyncio.Event]:
        """A feed from a position on, and the event that is set when there is something in it."""
        event = asyncio.Event()
        feed = Feed(tape, after, self._limit_bytes, event.set)
        if self._closed:
            feed.close("closed")
            return feed, event
        self._board.join(feed)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="tokentape-hub")
        else:
            with contextlib.suppress(RedisError, OSError):
                await self._server.run(self._board.wake())
        return feed, event

    def leave(self, feed: Feed) -> None:
        self._board.leave(feed)

    async def close(self) -> None:
        self._closed = True
        self._board.close_all("closed")
        if self._task is not None:
            await end_task(self._task)

    async def _run(self) -> None:
        while self._board:
            try:
                async with self._server.client.client() as reading:
                    await self._read(reading)
            except (RedisError, OSError):
                self._board.close_all("broken")
        self._task = None
        with contextlib.suppress(RedisError, OSError):
            await self._server.client.delete(self._board.wake_key)

    async def _read(self, reading: redis.asyncio.Redis) -> None:
        """See ThreadHub._read."""
        server = AsyncServer(reading, ())
        with _told_of_reconnects(reading.connection, self._opened):
            while self._board:
                self._board.deliver(await server.wait_for(self._board.read(), BLOCK_MS))

    def _opened(self, _connection: object) -> None:
        self._board.opened()
