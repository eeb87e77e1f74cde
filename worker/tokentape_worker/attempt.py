"""One claimed attempt at a job: call upstream, publish what comes, write the end.

An attempt has one of four outcomes:

    ended     an `end` stands on the tape, written here
    again     claim the next attempt: it broke in mid-stream (readers start over), or the tape lost its tail
    later     nothing was published and upstream asks for a wait: give the slot back
    let_go    it was interrupted from outside, or the tape takes no more of it: write nothing more
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import structlog
from redis.exceptions import OutOfMemoryError, RedisError

from tokentape.completion import Fold
from tokentape.connection import passing
from tokentape.job import EndStatus, ErrorInfo
from tokentape.settings import Settings
from tokentape.tape import EndData, QueuedData, Tape, Timings

from .limits import Limits
from .pipelined import Pipelined
from .publisher import Publisher, Track
from .retry import decide
from .upstreams import UpstreamError, Upstreams

T = TypeVar("T")


@dataclass(frozen=True)
class Services:
    """What every attempt of a worker process shares."""

    settings: Settings
    tapes: Pipelined
    publisher: Publisher
    upstreams: Upstreams
    limits: Limits


@dataclass(frozen=True)
class Claim:
    """An attempt as the tape granted it. `started_at_ms` is by the tapes' server's clock."""

    tape: Tape
    head: QueuedData
    upstream: str
    budget: int
    attempt: int
    spent: int
    token: str
    started_at_ms: int


@dataclass(frozen=True)
class Outcome:
    """How an attempt left; see the module."""

    kind: Literal["ended", "again", "later", "let_go"]
    status: EndStatus = "failed"
    error: ErrorInfo | None = None
    reason: str = ""
    wait_s: float = 0.0


class Attempt:
    """Run it once with `run`; `interrupt` it from anywhere on the loop."""

    def __init__(self, services: Services, claim: Claim, log: structlog.stdlib.BoundLogger) -> None:
        self._services = services
        self._settings = services.settings
        self._claim = claim
        self._log = log.bind(attempt=claim.attempt, upstream=claim.upstream)
        self._fold = Fold()
        self._failures = claim.spent
        self._began_at = time.monotonic()
        self._first_chunk_at: float | None = None
        self._chunks = 0
        self._calling: asyncio.Task[Outcome] | None = None
        self._interrupted = False
        self._track: Track = services.publisher.open(
            claim.tape, claim.attempt, claim.token, on_verdict=self._cancel_call
        )

    def interrupt(self) -> None:
        """Stop now: the upstream connection is closed at once; an end that is being written is written."""
        self._interrupted = True
        self._cancel_call()

    async def run(self) -> Outcome:
        """Call upstream until there is an outcome."""
        if self._interrupted:
            return Outcome("let_go")
        self._calling = asyncio.create_task(self._call())
        try:
            return await self._calling
        except asyncio.CancelledError:
            if self._interrupted or self._track.verdict is not None:
                return await self._after_interruption()
            self._cancel_call()  # the task that runs us was cancelled
            raise
        finally:
            self._calling = None
            self._track.abandon()

    async def fail(self, error: ErrorInfo) -> Outcome:
        """End the job as failed, without a call."""
        return await self._end("failed", error)

    def _cancel_call(self) -> None:
        if self._calling is not None:
            self._calling.cancel()

    async def _after_interruption(self) -> Outcome:
        verdict = self._track.verdict
        if verdict == "lost":
            # The tape lost more than we kept. Nobody's fault: the new attempt spends nothing.
            return Outcome("again", reason="drained")
        if verdict in ("full", "refused"):
            return await self._fail_unwritten()
        return Outcome("let_go")

    async def _call(self) -> Outcome:
        body = await through_outages(self._request)
        if body is None:
            message = "the stored request is missing, or not a JSON object"
            return await self._end("failed", ErrorInfo(type="invalid_request", message=message))
        while True:
            try:
                async with asyncio.timeout(self._left_s()):
                    error, retry_after_s = await self._stream(body)
            except TimeoutError:
                expired = ErrorInfo(type="expired", message="the job's deadline passed while it ran", retryable=True)
                return await self._end("expired", expired)
            if error is None:
                return await self._end("completed", None)
            outcome = await self._after_failure(error, retry_after_s)
            if outcome is not None:
                return outcome

    async def _after_failure(self, error: ErrorInfo, retry_after_s: float | None) -> Outcome | None:
        """What follows a failed call; None: another call, now."""
        settings = self._settings
        if self._chunks:
            retry_after_s = None  # in mid-stream a retry is a new attempt, and counted whatever upstream asks for
        if retry_after_s is None:
            self._failures += 1
        retry = decide(
            error,
            failures=self._failures,
            budget=self._claim.budget,
            retry_after_s=retry_after_s,
            left_s=self._left_s(),
            hold_s=settings.hold_s,
            max_retry_after_s=settings.max_retry_after_s,
            dice=random.random(),
        )
        if retry.action == "stop":
            return await self._end("failed", error)
        self._log.info(
            "call failed, to be repeated",
            error=error.type,
            upstream_status=error.upstream_status,
            wait_s=round(retry.wait_s, 3),
            chunks=self._chunks,
        )
        if self._chunks:
            # Readers have text of this attempt: what follows is another one, and its claim counts this failure.
            await asyncio.sleep(min(retry.wait_s, settings.hold_s))
            return Outcome("again", reason=error.type)
        # The next claim counts a call that failed, but not one that upstream asked to make later.
        reason = error.type if retry_after_s is None else "wait"
        if retry.action == "later":
            return Outcome("later", error=error, reason=reason, wait_s=retry.wait_s)
        await asyncio.sleep(retry.wait_s)
        turn_s = await self._services.limits.wait_for_turn(self._claim.upstream)
        return Outcome("later", error=error, reason=reason, wait_s=turn_s) if turn_s else None

    async def _stream(self, body: dict[str, Any]) -> tuple[ErrorInfo | None, float | None]:
        """One call. -> None where it was answered in full; else the error, and when upstream wants the next call."""
        published_bytes = 0
        publisher = self._services.publisher
        try:
            async with self._services.upstreams.call(
                self._claim.upstream, body, job_id=self._claim.tape.job_id, native=self._claim.head.native
            ) as call:
                async for pieces in call:
                    if self._first_chunk_at is None:
                        self._first_chunk_at = time.monotonic()
                    for piece in pieces:
                        self._fold.add(piece.chunk)
                        published_bytes += len(piece.data)
                    if published_bytes > self._settings.max_output_bytes:
                        limit = self._settings.max_output_bytes
                        message = f"the answer is longer than max_output_bytes ({limit})"
                        return ErrorInfo(type="output_too_large", message=message), None
                    self._track.put([piece.data for piece in pieces])
                    self._chunks += len(pieces)
                    if not publisher.has_room:
                        await publisher.room()
                verdict = call.verdict.error
                return verdict, verdict.retry_after_s if verdict else None
        except UpstreamError as error:
            return error.info, error.retry_after_s

    async def _request(self) -> dict[str, Any] | None:
        (data,) = await self._services.tapes.run([self._claim.tape.request()])
        try:
            body = json.loads(data) if data is not None else None
        except ValueError:
            return None
        return body if isinstance(body, dict) else None

    def _left_s(self) -> float:
        """Seconds to the job's deadline. Two clocks take part, but only their differences."""
        granted_s = (self._claim.head.deadline_at_ms - self._claim.started_at_ms) / 1000
        return granted_s - (time.monotonic() - self._began_at)

    # ---- the end

    async def _end(self, status: EndStatus, error: ErrorInfo | None) -> Outcome:
        """Write the end. From here on nothing interrupts: who does meets a job that has ended."""
        self._calling = None
        completion = self._fold.completion() if self._chunks else None
        result = completion.to_json() if completion is not None and status == "completed" else b""
        end = EndData(
            status=status,
            error=error,
            usage=completion.usage if completion is not None else None,
            attempts=self._claim.attempt,
            timings=self._timings(),
        )
        verdict = await self._track.end(end, result, self._settings.retention_s)
        if verdict in ("full", "refused"):
            return await self._fail_unwritten()
        if verdict == "lost":
            return Outcome("again", reason="drained")
        if verdict not in ("ok", "already"):
            return Outcome("let_go")
        self._report(end)
        if end.usage is not None:
            await self._services.limits.charge(self._claim.upstream, end.usage.total_tokens)
        return Outcome("ended", status=status, error=error)

    async def _fail_unwritten(self) -> Outcome:
        """What could not be written is given up; that the job has failed can be, memory or not (allow-oom)."""
        full = self._track.verdict == "full"
        message = "the tapes' server has no memory left" if full else "the tapes' server refuses to write"
        self._track.drop_pending()
        error = ErrorInfo(type="storage_full" if full else "storage_error", message=message, retryable=True)
        end = EndData(status="failed", error=error, attempts=self._claim.attempt, timings=self._timings())
        verdict = await self._track.end(end, b"", self._settings.retention_s)
        if verdict not in ("ok", "already"):
            return Outcome("let_go")
        self._report(end)
        return Outcome("ended", status="failed", error=error)

    def _timings(self) -> Timings:
        first_chunk = _ms(self._first_chunk_at - self._began_at) if self._first_chunk_at is not None else None
        return Timings(
            queued_ms=max(0, self._claim.started_at_ms - self._claim.head.submitted_at_ms),
            first_chunk_ms=first_chunk,
            total_ms=_ms(time.monotonic() - self._began_at),
        )

    def _report(self, end: EndData) -> None:
        timings = end.timings or Timings()
        self._log.info(
            "job ended",
            status=end.status,
            error=end.error.type if end.error else None,
            upstream_status=end.error.upstream_status if end.error else None,
            first_chunk_ms=timings.first_chunk_ms,
            total_ms=timings.total_ms,
            chunks=self._chunks,
            tokens=end.usage.completion_tokens if end.usage else None,
        )


async def through_outages(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a command until the server has answered it. Ends with the task that waits for it."""
    pause_s = 0.02
    while True:
        try:
            return await call()
        except (RedisError, OSError) as error:
            if not passing(error) and not isinstance(error, OutOfMemoryError):
                raise
            await asyncio.sleep(pause_s)
            pause_s = min(0.5, pause_s * 2)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
