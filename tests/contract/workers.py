"""The workers of the world: ours, and the stock `rq worker` that runs our entry point.

What the product does with threads and tasks (service.py, lease.py, sweep.py, entrypoint.py) is written down here once
more as generators, so that every command is a step of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from tests.contract.runs import RETENTION_S, SETTLE_S, Run, surely
from tests.contract.world import LEASE_MS, RENEWAL_MS, Lost, Pause, Process, Waits, World
from tokentape.job import EndStatus, ErrorInfo, Priority
from tokentape.operations import Ask
from tokentape.tape import QueuedData, decode_entry, text_of
from tokentape_worker import ownership as own
from tokentape_worker.ownership import Delivery, Ownership

_MOST = 500
_EXPIRED = ErrorInfo(type="expired", message="the job's deadline passed", retryable=True)


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
        commands = [world.tape(job_id).settle("expired", _EXPIRED, RETENTION_S, if_overdue=True) for job_id in job_ids]
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
                keep_s=RETENTION_S,
                watch_s=SETTLE_S if verdict == "ok" else 0.0,
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
