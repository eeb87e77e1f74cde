"""The publisher: all chunks of all streams go to the tapes' server through one round trip at a time.

What arrives while a round trip is under way forms the next one. Under little load that is one chunk at once; under
heavy load batches grow by themselves, one append per tape and flush.

A `Track` is one attempt's side of its tape: chunks that are not yet written, the newest ones that are (to send again
from a gap), and the verdict when the tape takes no more:

    overtaken, ended, gone    somebody else has the job, or it is over: write nothing more
    lost                      the tape has lost more than we kept: the attempt must be claimed anew
    full                      the server's memory has been full for storage_wait_s
    refused                   the server refuses in a way that repeating does not mend

Lost replies, outages, failovers are not told to the tracks: the same positions are sent again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from redis.exceptions import OutOfMemoryError, ResponseError

from tokentape.connection import TRANSIENT, AsyncServer, passing
from tokentape.scripts import Command
from tokentape.tape import EndData, Position, Tape, text_of

Verdict = Literal["overtaken", "ended", "gone", "lost", "full", "refused"]

#: What one append carries at most: bounds how long the server is busy with one tape.
_MOST_CHUNKS: Final = 512
_MOST_BYTES: Final = 512 * 1024


class Track:
    """One attempt on one tape. `put` chunks, then `end`; stop when `verdict` is set."""

    def __init__(
        self, publisher: Publisher, tape: Tape, attempt: int, token: str, on_verdict: Callable[[], None]
    ) -> None:
        self.tape = tape
        self.attempt = attempt
        self.token = token
        self.verdict: Verdict | None = None
        self._publisher = publisher
        self._on_verdict = on_verdict
        self._first = 1  # the seq of the first pending chunk
        self._pending: deque[bytes] = deque()
        self._sent = 0  # how many of the pending are in the command under way
        self._kept: deque[bytes] = deque()  # published, newest; they end right before `_first`
        self._kept_bytes = 0
        self._end: tuple[EndData, bytes, float] | None = None
        self._ended: asyncio.Future[str] | None = None
        self._full_since: float | None = None
        self._abandoned = False

    def put(self, chunks: Sequence[bytes]) -> None:
        """Publish chunks soon, in order. Await `publisher.room()` between calls."""
        if self.verdict is None:
            self._pending.extend(chunks)
            self._publisher.added(self, sum(map(len, chunks)))

    async def end(self, end: EndData, result: bytes, retention_s: float) -> str:
        """Publish what is pending, then the end. -> 'ok', 'already', or a verdict."""
        if self.verdict is not None and self.verdict != "full":
            return self.verdict
        self._end = (end, result, retention_s)
        self._ended = asyncio.get_running_loop().create_future()
        self._publisher.added(self, 0)
        return await self._ended

    def drop_pending(self) -> None:
        """Give up what could not be written: the end follows the last chunk that stands."""
        self._publisher.removed(sum(map(len, self._pending)))
        self._pending.clear()
        self._sent = 0
        if self.verdict == "full":
            self.verdict = None

    # ---- for the publisher

    def command(self) -> Command | None:
        """The next command for this tape, or None."""
        if self.verdict is not None or self._abandoned:
            return None
        if self._pending:
            chunks: list[bytes] = []
            size = 0
            for chunk in self._pending:
                if chunks and (size + len(chunk) > _MOST_BYTES or len(chunks) == _MOST_CHUNKS):
                    break
                chunks.append(chunk)
                size += len(chunk)
            self._sent = len(chunks)
            return self.tape.append(self.attempt, self.token, self._first, chunks)
        if self._end is not None:
            end, result, retention_s = self._end
            return self.tape.end(Position(self.attempt, self._first), self.token, end, result, retention_s)
        return None

    def answer(self, reply: Any) -> bool:
        """Take the reply to `command`. -> False where the server is in passing trouble."""
        if self._abandoned:
            return True
        if isinstance(reply, Exception):
            return self._refused(reply)
        self._full_since = None
        verdict = text_of(reply[0])
        if verdict == "gap":
            self._resend_from(int(reply[1]) + 1)
        elif verdict == "ok" and self._pending:
            self._publisher.removed(self._published(self._sent))
        elif verdict in ("ok", "already"):
            self._finish(verdict)
        else:
            self._close(verdict)  # type: ignore[arg-type]
        return True

    def abandon(self) -> None:
        """Nobody waits for this track any more; a reply that is under way means nothing to it."""
        self._abandoned = True
        self._publisher.removed(sum(map(len, self._pending)))
        self._pending.clear()

    def _published(self, count: int) -> int:
        size = 0
        for _ in range(count):
            chunk = self._pending.popleft()
            size += len(chunk)
            self._kept.append(chunk)
        self._first += count
        self._sent = 0
        self._kept_bytes += size
        while self._kept_bytes > self._publisher.resend_bytes:
            self._kept_bytes -= len(self._kept.popleft())
        return size

    def _resend_from(self, seq: int) -> None:
        missing = self._first - seq
        if seq < 1 or missing > len(self._kept):
            self._close("lost")
            return
        for _ in range(missing):
            chunk = self._kept.pop()
            self._kept_bytes -= len(chunk)
            self._pending.appendleft(chunk)
            self._publisher.added(self, len(chunk))
        self._first = seq

    def _refused(self, error: Exception) -> bool:
        if isinstance(error, OutOfMemoryError) or "OOM" in str(error)[:120]:
            now = time.monotonic()
            self._full_since = self._full_since or now
            if now - self._full_since > self._publisher.storage_wait_s:
                self._close("full")
            return False
        if passing(error):
            return False
        self._close("refused")
        return True

    def _close(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self._finish(verdict)
        self._on_verdict()

    def _finish(self, verdict: str) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(verdict)
        self._end = None


class Publisher:
    """Owns the round trips. `run` is its task."""

    def __init__(
        self, server: AsyncServer, *, max_unpublished_bytes: int, resend_bytes: int, storage_wait_s: float
    ) -> None:
        self.resend_bytes = resend_bytes
        self.storage_wait_s = storage_wait_s
        self._server = server
        self._limit = max_unpublished_bytes
        self._unpublished = 0
        self._dirty: dict[Track, None] = {}
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def open(self, tape: Tape, attempt: int, token: str, on_verdict: Callable[[], None]) -> Track:
        """A track for an attempt that was just claimed. `on_verdict` is called when its tape takes no more."""
        return Track(self, tape, attempt, token, on_verdict)

    @property
    def has_room(self) -> bool:
        """Whether the worker holds less than its bound of unpublished bytes."""
        return self._unpublished <= self._limit

    async def room(self) -> None:
        """Wait until it does."""
        await self._room.wait()

    def added(self, track: Track, size: int) -> None:
        self._dirty[track] = None
        self._unpublished += size
        if self._unpublished > self._limit:
            self._room.clear()
        self._work.set()

    def removed(self, size: int) -> None:
        self._unpublished -= size
        if self._unpublished <= self._limit:
            self._room.set()

    async def run(self) -> None:
        """Flush until cancelled."""
        pause_s = 0.0
        while True:
            if pause_s:
                await asyncio.sleep(pause_s)
            await self._work.wait()
            self._work.clear()
            healthy = await self._flush()
            pause_s = 0.0 if healthy else min(0.5, pause_s * 2 or 0.02)
            if self._dirty:
                self._work.set()

    async def _flush(self) -> bool:
        """One round trip. -> False where the server was in passing trouble."""
        asked: list[tuple[Track, Command]] = []
        for track in list(self._dirty):
            command = track.command()
            if command is None:
                del self._dirty[track]
            else:
                asked.append((track, command))
        if not asked:
            return True
        try:
            replies = await self._server.run_all([command for _, command in asked])
        except TRANSIENT:
            return False
        except ResponseError as error:  # the pipeline as a whole was refused
            replies = [error] * len(asked)
        healthy = [track.answer(reply) for (track, _), reply in zip(asked, replies, strict=True)]
        return all(healthy)
