"""Running one delivery, from the claim to the acknowledgement.

    start ─▶ claim ─┬─▶ run ────▶ attempt ─┬─▶ ended ─▶ ack
                    │     ▲                ├─▶ later ─▶ delay
                    │     └──── again ◀────┤
                    │                      └─▶ let go ─▶ ack with what the tape says, or putback, or nothing
                    ├─▶ ended, gone ─▶ ack: an answer that stands is never paid for twice
                    └─▶ older ─▶ putback with a higher number (a failover set the queue's numbers back)

The claim comes before the request is read, so that a job that kills its worker by its request is counted too. A
delivery leaves by exactly one of ack, delay and putback; by none where this worker has lost it, or its name is dead.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, TypeVar, cast

import structlog
from redis.exceptions import RedisError

from tokentape.errors import CorruptTape, UnknownFormat
from tokentape.job import ENTRYPOINT, MAX_TIMEOUT_S, EndStatus, ErrorInfo
from tokentape.scripts import Command
from tokentape.tape import EndData, Entry, QueuedData, Tape, decode_entry, text_of

from .attempt import Attempt, Claim, Outcome, Services, through_outages
from .ledger import Ledger
from .ownership import Delivery, Ownership, payload_is_ours

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger("tokentape.worker")

#: Why a run is stopped: put the job back; somebody else has it, or it has ended; this worker's name is dead.
Stop = Literal["drain", "fenced", "lost"]

#: RQ's books hold a running job for this long beyond any deadline, so that RQ's own sweeps come after ours.
_RQ_MARGIN_S: Final = 3600.0

#: How long a job whose tape this version cannot read stays away from it, and from the others of its age.
_FOR_NEWER_S: Final = 5.0


class Run:
    """One delivery to one worker name. `execute` it in a task; `stop` it from anywhere on the loop."""

    def __init__(self, services: Services, ledger: Ledger, ownership: Ownership, job: Delivery) -> None:
        self.job = job
        self._services = services
        self._settings = services.settings
        self._ledger = ledger
        self._ownership = ownership
        self._tape = Tape(services.settings.namespace, job.job_id)
        self._stopped: Stop | None = None
        self._claimed = False
        self._waiting: asyncio.Future[Any] | None = None
        self._attempt: Attempt | None = None
        self._log = log.bind(job_id=job.job_id, delivery=job.number)

    def stop(self, reason: Stop) -> None:
        """Stop at the next moment: at once while upstream is called, or a server that is away is waited for."""
        self._stopped = self._stopped or reason
        if self._attempt is not None:
            self._attempt.interrupt()
        if self._waiting is not None:
            self._waiting.cancel()

    async def execute(self) -> None:
        """Run to one of the exits. What upstream, a job or an outage can cause is not raised but handled."""
        try:
            await self._execute()
        except _Stopped:
            await self._after_stop()
        except (RedisError, CorruptTape) as error:
            # A tape or a record that cannot be worked with. Trying again would find the same.
            self._log.error("job cannot be run", error=type(error).__name__)
            await self._give_up(type(error).__name__)

    async def _execute(self) -> None:
        start = self._ownership.start(self.job, MAX_TIMEOUT_S + _RQ_MARGIN_S)
        started = await self._ledger.one(start)
        if not int(started[0]):
            return  # overtaken between pop and here
        try:
            head, ended = await self._unless_stopped(self._head)
        except UnknownFormat as error:
            # In the middle of an upgrade: left to the workers that can read it, for as long as the job may wait.
            self._log.error("job left to a newer worker", error=error.reason)
            await self._ledger.one(self._ownership.delay(self.job, _FOR_NEWER_S, reason=self.job.reason))
            return
        if head is None:
            await self._ack("failed", ErrorInfo(type="not_found", message="no tape stands under this id"))
            return
        ours = payload_is_ours(started[1] if len(started) > 1 else None, self.job.job_id, ENTRYPOINT)
        upstream = head.upstream or self._settings.route(head.model) or ""
        # Before the claim: waiting for a turn is no attempt. A job that has ended (it was cancelled) takes no turn.
        turn_s = 0.0
        if not ended:
            turn_s = await self._unless_stopped(lambda: self._services.limits.wait_for_turn(upstream))
        if turn_s:
            # The reason stays: what the delivery before was lost to is counted by the claim.
            await self._ledger.one(self._ownership.delay(self.job, turn_s, reason=self.job.reason))
            return
        reason, try_ = self.job.reason, 0
        while True:
            # One command for one attempt: repeated after a lost reply, it carries the same token.
            claim = self._claim(upstream, reason, try_)
            reply = await self._unless_stopped(functools.partial(self._ask_tape, claim))
            if text_of(reply[0]) != "run":
                await self._without_attempt(reply)
                return
            self._claimed = True
            outcome = await self._run_attempt(self._granted(reply, head, upstream), ours)
            if outcome.kind != "again":
                await self._leave(outcome)
                return
            reason, try_ = outcome.reason, try_ + 1

    async def _run_attempt(self, claim: Claim, ours: bool) -> Outcome:
        self._attempt = attempt = Attempt(self._services, claim, self._log)
        try:
            if self._stopped is not None:
                return Outcome("let_go")
            if not ours:
                message = "the queue's payload is not a call of the entry point"
                return await attempt.fail(ErrorInfo(type="invalid_request", message=message))
            if claim.upstream not in self._settings.upstreams:
                which = repr(claim.upstream) if claim.upstream else f"for model {claim.head.model!r}"
                message = f"this worker has no upstream {which}"
                return await attempt.fail(ErrorInfo(type="invalid_request", message=message, code="unknown_upstream"))
            return await attempt.run()
        finally:
            self._attempt = None

    async def _without_attempt(self, reply: list[Any]) -> None:
        verdict = text_of(reply[0])
        if verdict == "older":
            passed = int(text_of(reply[1]))
            await self._ledger.one(self._ownership.putback(self.job, "worker_lost", pass_delivery=passed))
            return
        status = cast(EndStatus, text_of(reply[1])) if verdict == "ended" else "failed"
        await self._ack(status, None)
        self._log.info("job had ended", status=status)

    async def _leave(self, outcome: Outcome) -> None:
        if outcome.kind == "ended":
            await self._ack(outcome.status, outcome.error)
        elif outcome.kind == "later":
            await self._ledger.one(self._ownership.delay(self.job, outcome.wait_s, reason=outcome.reason))
        else:
            await self._after_stop()

    async def _after_stop(self) -> None:
        if self._stopped == "lost":
            return
        if self._stopped == "drain":
            # Without a claim the reason stays: what the delivery before was lost to is counted by the next one.
            reason = "drained" if self._claimed else self.job.reason
            await self._ledger.one(self._ownership.putback(self.job, reason))
            self._log.info("job put back")
            return
        # Fenced. Where the tape has ended, RQ's record is to say so; where not, a newer attempt has an owner who will.
        last = await through_outages(self._last)
        if last is None:
            await self._ack("failed", None)
        elif isinstance(last.data, EndData):
            await self._ack(last.data.status, last.data.error)
        self._log.info("job let go", ended=last is not None and last.kind == "end")

    async def _give_up(self, why: str) -> None:
        error = ErrorInfo(type="corrupt_tape", message=f"the job's tape cannot be worked with ({why})")
        try:
            await self._services.tapes.run([self._tape.settle("failed", error, self._settings.retention_s)])
        except RedisError:
            self._log.error("job cannot be ended on its tape")
        await self._ack("failed", error)

    async def _ack(self, status: EndStatus, error: ErrorInfo | None) -> None:
        settings = self._settings
        await self._ledger.one(
            self._ownership.ack(self.job, status, error, settle_s=settings.settle_s, keep_s=settings.retention_s)
        )

    # ---- the tape

    async def _head(self) -> tuple[QueuedData | None, bool]:
        """What was submitted, and whether the job has ended."""
        first, last = await self._services.tapes.run([self._tape.first(), self._tape.last()])
        if not first or not last:
            return None, False
        head = decode_entry(self.job.job_id, first[0]).expect(QueuedData)
        return head, decode_entry(self.job.job_id, last[0]).kind == "end"

    async def _last(self) -> Entry | None:
        (rows,) = await self._services.tapes.run([self._tape.last()])
        return decode_entry(self.job.job_id, rows[0]) if rows else None

    def _claim(self, upstream: str, reason: str, try_: int) -> Command:
        return self._tape.claim(
            delivery=self.job.number,
            try_=try_,
            worker=self._ownership.worker,
            upstream=upstream,
            token=secrets.token_hex(8),
            reason=reason,
            budget=self._budget(upstream),
            retention_s=self._settings.retention_s,
        )

    async def _ask_tape(self, command: Command) -> list[Any]:
        (reply,) = await self._services.tapes.run([command])
        return list(reply)

    def _budget(self, upstream: str) -> int:
        known = self._settings.upstreams.get(upstream)
        return known.max_attempts if known else 1

    def _granted(self, reply: list[Any], head: QueuedData, upstream: str) -> Claim:
        return Claim(
            tape=self._tape,
            head=head,
            upstream=upstream,
            budget=self._budget(upstream),
            attempt=int(reply[1]),
            spent=int(reply[2]),
            token=text_of(reply[3]),
            started_at_ms=int(text_of(reply[4])),
        )

    async def _unless_stopped(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a command through outages, for as long as this run is wanted."""
        if self._stopped is not None:
            raise _Stopped
        self._waiting = waiting = asyncio.ensure_future(through_outages(call))
        try:
            return await waiting
        except asyncio.CancelledError:
            if self._stopped is None:
                raise
            raise _Stopped from None
        finally:
            self._waiting = None


class _Stopped(Exception):
    """The run was stopped between two commands."""
