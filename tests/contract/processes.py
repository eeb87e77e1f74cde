"""The processes of the world: clients, readers, our workers, stock workers, on the product's scripts and encoders.

What the product does with threads and tasks (client.py, service.py, sweep.py, run.py, attempt.py, entrypoint.py) is
written down here once more as generators, so that every command is a step of its own; the publisher's rule for gaps is
the product's own `Track`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any, cast

from tests.contract.world import (
    BUDGET,
    CHUNKS,
    LEASE_MS,
    RENEWAL_MS,
    Die,
    Lost,
    Pause,
    Process,
    Soft,
    Stopped,
    Violation,
    Waits,
    World,
)
from tokentape.errors import CorruptTape, JobNotFound
from tokentape.job import ChatJob, EndStatus, ErrorInfo, Priority
from tokentape.operations import Ask, Steps
from tokentape.queue import rq_job_key
from tokentape.reader import Reader
from tokentape.scripts import Command
from tokentape.tape import START, EndData, QueuedData, Tape, decode_entry, text_of
from tokentape_worker import ownership as own
from tokentape_worker.ownership import Delivery, Ownership
from tokentape_worker.publisher import Publisher, Track

#: A client gives up after so many lost connections.
_CLIENT_TRIES = 4
_SETTLE_S = 10.0
_RETENTION_S = 86_400.0
_MOST = 500
_EXPIRED = ErrorInfo(type="expired", message="the job's deadline passed", retryable=True)


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


# ---- clients and readers


def driven(steps: Steps[Any]) -> Waits[Any]:
    """One of the product's operations over connections that break. Raises Lost when it gives up."""
    ask = next(steps)
    while True:
        replies = yield from _patiently(ask)
        try:
            ask = steps.send(replies)
        except StopIteration as stop:
            return stop.value


def _patiently(ask: Ask) -> Waits[list[Any]]:
    for _ in range(_CLIENT_TRIES):
        try:
            replies: list[Any] = yield ask
        except Lost:
            yield Pause(20)
            continue
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies
    raise Lost


def submit(world: World, job: ChatJob, *, after_ms: int = 0) -> Waits[None]:
    yield Pause(after_ms)
    try:
        yield from driven(world.operations.submit([job], fresh=False))
    except Lost:
        return
    world.submitted.add(job.id)


def cancel(world: World, job_id: str) -> Waits[None]:
    world.happened["cancel"] += 1
    try:
        yield from driven(world.operations.cancel(job_id))
    except (Lost, JobNotFound):
        return


def duplicate(world: World, job: ChatJob) -> Waits[None]:
    """RQ's sweep, a dashboard, `rq requeue`: the id stands in its queue once more."""
    push = world.rng.choice(("RPUSH", "LPUSH"))
    if not world.look("queue", "EXISTS", rq_job_key(job.id)):
        return  # they go by RQ's records
    try:
        yield Ask("queue", [(push, world.keys.queue(job.priority), job.id)])
    except Lost:
        return


def read(world: World, job_id: str) -> Waits[None]:
    """Follow one tape to its end, as Client.follow does, and keep the text of the last attempt."""
    reader = Reader(world.operations, job_id, START)
    text: list[bytes] = []
    while not reader.ended:
        mark = reader.mark()
        try:
            entries = yield from _once(reader.catch_up())
        except Lost:
            reader.rewind(mark)
            reader.doubt()
            entries = []
        except JobNotFound:
            entries = []  # its submit is under way
        except CorruptTape as error:
            raise Violation(str(error)) from None
        for entry in entries:
            if entry.kind in ("queued", "attempt"):
                text = []
            elif entry.kind == "chunk":
                text.append(entry.raw)
        if not entries:
            yield Pause(world.rng.choice((50, 300, 900)))
    world.read[job_id] = b"".join(text)


def _once(steps: Steps[Any]) -> Waits[Any]:
    ask = next(steps)
    while True:
        replies = yield ask
        try:
            ask = steps.send(replies)
        except StopIteration as stop:
            return stop.value


# ---- our worker


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
class Worker:
    """One worker name: a process of ours, or one run of a stock worker."""

    world: World
    name: str
    slots: int = 2
    stock: bool = False
    alive: bool = True
    frozen: bool = False
    thaws_at_ms: int = 0
    lost: bool = False
    draining: bool = False
    runs: dict[tuple[str, int], Run] = field(default_factory=dict)
    #: (job, attempt) that is called for here, now.
    attempts: set[tuple[str, int]] = field(default_factory=set)
    sweeps: int = 0
    astray: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.ownership = Ownership(self.world.keys, self.name)
        self.renewed_at_ms = self.steady_since_ms = self.world.now_ms
        self.popper: Process | None = None
        self.world.workers.append(self)

    @property
    def working(self) -> bool:
        """Alive under this name, and not about to stop."""
        return self.alive and not self.lost and not self.draining

    @property
    def steady(self) -> bool:
        """As Lease.steady."""
        now_ms = self.world.now_ms
        return now_ms - self.renewed_at_ms < 2 * RENEWAL_MS and now_ms - self.steady_since_ms >= LEASE_MS

    def spawn(self, what: str, steps: Waits[Any]) -> Process:
        return self.world.spawn(f"{self.name}.{what}", steps, self)

    def serve(self) -> Waits[None]:
        yield from surely("queue", self.ownership.join(LEASE_MS / 1000))
        self.renewed_at_ms = self.steady_since_ms = self.world.now_ms
        self.spawn("renew", self.renew())
        self.popper = self.spawn("pop", self.pop())
        self.spawn("sweep", self.sweep())

    def crash(self) -> None:
        """SIGKILL."""
        self.world.happened["crash"] += 1
        self.end()

    def end(self) -> None:
        """Nothing of it goes on."""
        self.alive = False
        for process in list(self.world.processes):
            if process.worker is self:
                self.world.kill(process)
        self.runs.clear()
        self.attempts.clear()

    # ---- the lease

    def renew(self) -> Waits[None]:
        while self.alive:
            yield Pause(self.world.rng.randrange(RENEWAL_MS // 2, RENEWAL_MS + 1))
            try:
                (standing,) = yield Ask("queue", [self.ownership.renew(LEASE_MS / 1000)])
            except Lost:
                continue
            if not standing:
                self.on_lost()
                return
            now_ms = self.world.now_ms
            if now_ms - self.renewed_at_ms > 2 * RENEWAL_MS:
                self.steady_since_ms = now_ms
            self.renewed_at_ms = now_ms

    def on_lost(self) -> None:
        """Held for dead: everything is dropped; the process begins again under a new name."""
        self.world.note(self.name, "LEARNS THAT IT WAS REAPED")
        self.lost = True
        for run in list(self.runs.values()):
            run.stop("lost")
        if not self.stock and not self.draining:
            start_worker(self.world, self.slots)

    # ---- popping

    def pop(self) -> Waits[None]:
        rng = self.world.rng
        while self.working:
            free = self.slots - len(self.runs)
            if free <= 0:
                yield Pause(50)
                continue
            try:
                (reply,) = yield Ask("queue", [self.ownership.pop(free)])
            except Lost:
                self.world.happened["lost pop"] += 1
                yield Pause(100)
                continue
            popped = own.deliveries(reply)
            for job in popped or ():
                self.start(job)
            if not popped:
                yield Pause(RENEWAL_MS if popped is None else rng.choice((100, 400, 1000)))

    def start(self, job: Delivery) -> None:
        if (job.job_id, job.number) in self.runs or not self.working:
            return
        run = Run(self, job)
        self.runs[job.job_id, job.number] = run
        run.process = self.spawn(f"run{job.job_id[4:6]}#{job.number % 100_000}", run.execute())

    # ---- sweeping

    def sweep(self) -> Waits[None]:
        while self.alive and not self.lost:
            yield Pause(1000)
            yield from self.reconcile()
            yield from self.look_after_all()

    def reconcile(self) -> Waits[None]:
        before = set(self.runs)
        owned = own.owned((yield from surely("queue", self.ownership.mine())))
        if not self.working:
            return
        keys = {(job.job_id, job.number) for job in owned}
        for key in sorted(before - keys):
            if key in self.runs:
                self.runs[key].stop("fenced")
        for job in owned:
            if (job.job_id, job.number) not in before:
                self.start(job)

    def look_after_all(self) -> Waits[None]:
        keys = self.world.keys
        due = own.Due.decode((yield from surely("queue", own.due(keys, _MOST))))
        for job_id, priority in due.delayed:
            yield from surely("queue", own.promote(keys, job_id, priority))
        if self.steady:
            for name in due.dead_workers:
                if name != self.name:
                    yield from release(Ownership(keys, name), "reap")
        if due.overdue:
            yield from self.settle(due.overdue)
        self.sweeps += 1
        if self.sweeps % 2 == 0:
            yield from self.audit()

    def settle(self, job_ids: list[str], *, astray: bool = False) -> Waits[None]:
        world = self.world
        commands = [world.tape(job_id).settle("expired", _EXPIRED, _RETENTION_S, if_overdue=True) for job_id in job_ids]
        try:
            replies = yield Ask("tape", commands)
        except Lost:
            return  # the next sweep does it again
        for job_id, reply in zip(job_ids, replies, strict=True):
            verdict, *rest = [text_of(part) for part in reply]
            if verdict == "early":
                yield from surely(
                    "queue", own.reopen(world.keys, job_id, cast(Priority, rest[1]), rest[0], astray=astray)
                )
                continue
            ended = ("expired", *rest) if verdict == "ok" else tuple(rest) or None
            forget = own.forget(
                world.keys,
                job_id,
                cast(tuple[EndStatus, Priority] | None, ended),
                keep_s=_RETENTION_S,
                watch_s=_SETTLE_S if verdict == "ok" else 0.0,
                astray=astray,
            )
            yield from surely("queue", forget)

    def audit(self) -> Waits[None]:
        reply = yield from surely("queue", own.audit(self.world.keys, 0, _MOST - 1, 1000))
        astray = {text_of(job_id) for job_id in reply[1:]}
        again, self.astray = astray & self.astray, astray
        if again:
            yield from self.settle(sorted(again), astray=True)

    # ---- the stop

    def drain(self) -> Waits[None]:
        self.draining = True
        if self.popper is not None:
            self.world.kill(self.popper)
        for run in list(self.runs.values()):
            run.stop("drain")
        for _ in range(100):
            if self.runs:
                yield Pause(50)
        yield from release(self.ownership, "leave")
        self.end()


def start_worker(world: World, slots: int) -> Worker:
    worker = Worker(world, f"w{len(world.workers) + 1}", slots)
    worker.spawn("main", worker.serve())
    return worker


def release(ownership: Ownership, mode: str) -> Waits[None]:
    reply = yield from surely("queue", ownership.release(mode))
    while (rest := own.rest_of(reply)) is not None:
        reply = yield from surely("queue", ownership.release(mode, rest))


def run_stock(world: World, *, dies_with_the_id: bool) -> Waits[None]:
    """A stock `rq worker`: pops by its own means, then runs the entry point."""
    job_id = None
    for queue_key in world.keys.queues:
        try:
            (popped,) = yield Ask("queue", [("LPOP", queue_key)])
        except Lost:
            return
        job_id = text_of(popped) if popped else None
        if job_id:
            break
    if job_id is None or dies_with_the_id:
        return
    worker = Worker(world, f"s{len(world.workers) + 1}", slots=0, stock=True)
    world.spawn(f"{worker.name}.main", _run_entry_point(worker, job_id), worker)


def _run_entry_point(worker: Worker, job_id: str) -> Waits[None]:
    try:
        ((row,),) = yield Ask("tape", [worker.world.tape(job_id).first()])
        priority = decode_entry(job_id, row).expect(QueuedData).priority
        (reply,) = yield Ask("queue", [worker.ownership.adopt(job_id, priority, LEASE_MS / 1000)])
    except (Lost, ValueError):  # no connection; no tape
        worker.alive = False
        return
    if text_of(reply[0]) == "0":
        worker.alive = False
        return
    worker.renewed_at_ms = worker.world.now_ms
    worker.spawn("renew", worker.renew())
    job = Delivery(job_id, int(reply[0]), text_of(reply[1]), priority)
    run = Run(worker, job)
    worker.runs[job_id, job.number] = run
    run.process = worker.spawn("run", run.execute())
    while worker.runs:
        yield Pause(20)
    yield from release(worker.ownership, "leave")
    worker.end()


# ---- one delivery


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
            retention_s=_RETENTION_S,
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
            "queue", self.worker.ownership.ack(self.job, status, None, settle_s=_SETTLE_S, keep_s=_RETENTION_S)
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
        track._end = (EndData(status=status, attempts=attempt), result, _RETENTION_S)
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
