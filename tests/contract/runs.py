"""One delivery in the world, from the claim to the acknowledgement.

What the product does in tasks (run.py, attempt.py) is written down here once more as a generator, so that every command
is a step of its own. The publisher's rule for gaps is the product's own `Track`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tests.contract.world import BUDGET, CHUNKS, Die, Lost, Pause, Process, Soft, Stopped, Violation, Waits, World
from tokentape.job import EndStatus
from tokentape.operations import Ask
from tokentape.scripts import Command
from tokentape.tape import EndData, Tape, decode_entry, text_of
from tokentape_worker.ownership import Delivery
from tokentape_worker.publisher import Publisher, Track

if TYPE_CHECKING:
    from tests.contract.workers import Worker

SETTLE_S = 10.0
RETENTION_S = 86_400.0


def surely(where: str, command: Command) -> Waits[Any]:
    """Repeat one command until it is answered, as the ledger does."""
    while True:
        try:
            (reply,) = yield Ask(where, [command])  # type: ignore[arg-type]
        except Lost:
            yield Pause(50)
        else:
            if isinstance(reply, Exception):
                raise reply
            return reply


class _Room:
    """What a Track asks of its publisher, without the round trips."""

    storage_wait_s = 1e9

    def __init__(self, resend_bytes: int) -> None:
        self.resend_bytes = resend_bytes

    def added(self, track: Track, size: int) -> None:
        """The run flushes by itself."""

    def removed(self, size: int) -> None:
        """There is always room."""


@dataclass(eq=False)
class Run:
    """One delivery, from the claim to the acknowledgement: run.py and attempt.py."""

    worker: Worker
    job: Delivery
    stopped: str | None = None
    process: Process | None = None

    @property
    def world(self) -> World:
        return self.worker.world

    @property
    def tape(self) -> Tape:
        return self.world.tape(self.job.job_id)

    def stop(self, reason: str) -> None:
        self.stopped = self.stopped or reason
        self.worker.attempts = {key for key in self.worker.attempts if key[0] != self.job.job_id}
        if self.process is not None:
            self.world.call_away(self.process)

    def execute(self) -> Waits[None]:
        try:
            yield from self._execute()
        except Stopped:
            yield from self._after_stop()
        finally:
            self.worker.runs.pop((self.job.job_id, self.job.number), None)

    def _execute(self) -> Waits[None]:
        started = yield from surely("queue", self.worker.ownership.start(self.job, 3600.0))
        if not int(started[0]):
            return
        if not (yield from self._patiently(self.tape.first())):
            yield from self._ack("failed")
            return
        reason, try_ = self.job.reason, 0
        while True:
            reply = yield from self._patiently(self._claim(reason, try_))  # one token, however often it is sent
            if text_of(reply[0]) != "run":
                yield from self._without_attempt(reply)
                return
            outcome = yield from self._attempt(int(reply[1]), int(reply[2]), text_of(reply[3]))
            if outcome != "again":
                break
            reason, try_ = self.reason, try_ + 1
        if outcome == "later":
            yield from self._delay()
        elif outcome == "let go":
            yield from self._after_stop()
        else:
            yield from self._ack(cast(EndStatus, outcome))

    def _claim(self, reason: str, try_: int) -> Command:
        return self.tape.claim(
            delivery=self.job.number,
            try_=try_,
            worker=self.worker.name,
            upstream="u",
            token=secrets.token_hex(8),
            reason=reason,
            budget=BUDGET,
            retention_s=RETENTION_S,
        )

    def _without_attempt(self, reply: list[Any]) -> Waits[None]:
        verdict = text_of(reply[0])
        if verdict == "older":
            self.world.happened["passed over"] += 1
            passed = int(text_of(reply[1]))
            yield from surely("queue", self.worker.ownership.putback(self.job, "worker_lost", pass_delivery=passed))
        else:
            yield from self._ack(cast(EndStatus, text_of(reply[1])) if verdict == "ended" else "failed")

    def _after_stop(self) -> Waits[None]:
        if self.stopped == "lost":
            return
        if self.stopped == "drain":
            yield from surely("queue", self.worker.ownership.putback(self.job, "drained"))
            return
        rows = yield from surely("tape", self.tape.last())
        if not rows:
            yield from self._ack("failed")
            return
        last = decode_entry(self.job.job_id, rows[0])
        if last.kind == "end":
            yield from self._ack(last.expect(EndData).status)

    def _ack(self, status: EndStatus) -> Waits[None]:
        yield from surely(
            "queue", self.worker.ownership.ack(self.job, status, None, settle_s=SETTLE_S, keep_s=RETENTION_S)
        )

    def _delay(self) -> Waits[None]:
        yield from surely("queue", self.worker.ownership.delay(self.job, self.world.rng.choice((1.0, 20.0))))

    # ---- one attempt

    reason = ""

    def _attempt(self, attempt: int, failures: int, token: str) -> Waits[str]:
        """-> the status of the end, or 'again', 'later', 'let go'."""
        room = cast(Publisher, _Room(self.world.chunks_kept_bytes))
        track = Track(room, self.tape, attempt, token, on_verdict=lambda: None)
        self._begin(attempt)
        try:
            return (yield from self._call(track, attempt, failures))
        finally:
            track.abandon()
            self.worker.attempts.discard((self.job.job_id, attempt))

    def _call(self, track: Track, attempt: int, failures: int) -> Waits[str]:
        while True:
            plan = self._next_call(track.token)
            call = len(self.world.calls) - 1
            yield from self._soft(Pause(self.world.rng.choice((1, 30, 300, 1_000))))
            if plan == "poison":
                yield Die()
            if plan == "wait":
                return "later"
            if plan != "refuse":
                break
            failures += 1
            if failures >= BUDGET:
                return (yield from self._end(track, attempt, "failed", b""))
        answer = [b"%s/%d/%d;" % (self.job.job_id.encode(), call, number) for number in range(1, CHUNKS + 1)]
        for number, chunk in enumerate(answer, start=1):
            yield from self._soft(Pause(self.world.rng.choice((1, 50, 500, 2_000))))
            if plan == "break" and number == 2:
                self.world.happened["break"] += 1
                yield from self._flush(track)
                self.reason = "upstream_error"
                return self._verdict(track) or "again"
            track.put([chunk])
            if self.world.rng.random() < 0.7:
                yield from self._flush(track)
            if verdict := self._verdict(track):
                return verdict
        return (yield from self._end(track, attempt, "completed", b"".join(answer)))

    def _next_call(self, token: str) -> str:
        self.world.calls.append((self.job.job_id, self.worker.name, token))
        plans = self.world.plans.get(self.job.job_id)
        plan = plans.pop(0) if plans else "fine"
        if plan == "refuse":
            self.world.happened["refuse"] += 1
        return plan

    def _verdict(self, track: Track) -> str | None:
        if track.verdict is None:
            return None
        if track.verdict == "lost":
            self.reason = "drained"
            return "again"
        if track.verdict == "overtaken":
            self._check_overtaken_rightly()
        return "let go"

    def _flush(self, track: Track) -> Waits[None]:
        while (command := track.command()) is not None:
            try:
                (reply,) = yield from self._soft(Ask("tape", [command]))
            except Lost:
                yield from self._soft(Pause(20))
                continue
            if not track.answer(reply):
                yield from self._soft(Pause(100))

    def _end(self, track: Track, attempt: int, status: EndStatus, result: bytes) -> Waits[str]:
        """Write the end: nothing interrupts it."""
        track._end = (EndData(status=status, attempts=attempt), result, RETENTION_S)
        while (command := track.command()) is not None:
            try:
                (reply,) = yield Ask("tape", [command])
            except Lost:
                yield Pause(20)
                continue
            if not track.answer(reply):
                yield Pause(100)
        return self._verdict(track) or status

    def _soft(self, wait: Ask | Pause) -> Waits[Any]:
        if self.stopped is not None:
            raise Stopped
        return (yield Soft(wait))

    def _patiently(self, command: Command) -> Waits[Any]:
        while True:
            try:
                (reply,) = yield from self._soft(Ask("tape", [command]))
            except Lost:
                yield from self._soft(Pause(50))
            else:
                if isinstance(reply, Exception):
                    raise reply
                return reply

    # ---- what must hold while it runs

    def _begin(self, attempt: int) -> None:
        """Nobody takes over from a worker whose lease is good."""
        self.worker.attempts.add((self.job.job_id, attempt))
        if self.world.rolled_back:
            return
        for worker in self.world.workers:
            if worker is self.worker or not worker.alive or worker.lost:
                continue
            for job_id, running in worker.attempts:
                if job_id == self.job.job_id and running < attempt and self._lease_ms(worker) > self.world.now_ms:
                    raise Violation(
                        f"{job_id}: attempt {running} on {worker.name}, whose lease is good, was overtaken"
                        f" by {attempt} on {self.worker.name}"
                    )

    def _check_overtaken_rightly(self) -> None:
        """Nobody is overtaken who still owns the job and has a good lease."""
        if self.world.rolled_back or self._lease_ms(self.worker) <= self.world.now_ms:
            return
        record = self.world.look("queue", "HGET", self.world.keys.owners, self.job.job_id)
        if record and record.decode().startswith(f"{self.worker.name}|{self.job.number}|"):
            raise Violation(f"{self.job.job_id}: overtaken on {self.worker.name}, which owns it and has a good lease")

    def _lease_ms(self, worker: Worker) -> float:
        return float(self.world.look("queue", "ZSCORE", self.world.keys.leases, worker.name) or 0)
