"""What the contract suites say to a server: one command at a time, answers as text."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import redis

from tokentape.connection import Server
from tokentape.job import ChatJob, EndStatus, ErrorInfo, Priority
from tokentape.queue import QueueKeys, enqueue
from tokentape.scripts import Command
from tokentape.tape import EndData, Position, Tape
from tokentape_worker import ownership as own
from tokentape_worker.ownership import Delivery, Ownership

#: A condition that a server has to reach is given up after this long.
PATIENCE_S = 10.0


def texts(reply: Any) -> Any:
    """A reply with every bytes decoded, however deep."""
    if isinstance(reply, bytes):
        return reply.decode(errors="backslashreplace")
    if isinstance(reply, dict):
        return {texts(key): texts(value) for key, value in reply.items()}
    if isinstance(reply, list | tuple | set):
        return type(reply)(texts(part) for part in reply)
    return reply


def wait_until(condition: Callable[[], bool]) -> None:
    """Look until a condition holds; TimeoutError where it does not in time."""
    give_up_at = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > give_up_at:
            raise TimeoutError("the condition did not come true")
        time.sleep(0.001)


@dataclass(frozen=True)
class Bench:
    """One server under test, and a namespace on it. `client` is plain redis-py: it answers bytes."""

    kind: str
    client: redis.Redis
    server: Server
    namespace: str

    def ask(self, command: Command) -> Any:
        """Run one command. -> its reply as text. Raises what the server refuses with."""
        return texts(self.server.run([command])[0])

    def now_ms(self) -> int:
        seconds, microseconds = self.client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    def wait_past(self, moment_ms: int) -> None:
        """Until the server's clock is past a moment."""
        wait_until(lambda: self.now_ms() > moment_ms)


def chat_job(prompt: str = "Hi", **options: Any) -> ChatJob:
    return ChatJob.create({"model": "m", "messages": [{"role": "user", "content": prompt}]}, **options)


@dataclass
class TapeBench:
    """One job's tape, with every argument of a command that a test does not care about filled in."""

    bench: Bench
    job: ChatJob
    retention_s: float = 3600.0
    tape: Tape = field(init=False)

    def __post_init__(self) -> None:
        self.tape = Tape(self.bench.namespace, self.job.id)

    def submit(self, job: ChatJob | None = None, *, margin_s: float = 60.0) -> Any:
        job = job or self.job
        body = job.body()
        return self.bench.ask(self.tape.submit(job, body, hashlib.sha256(body).hexdigest(), margin_s))

    def claim(
        self,
        delivery: int = 1,
        try_: int = 0,
        *,
        worker: str = "w1",
        token: str = "token-1",
        reason: str = "submitted",
        budget: int = 3,
    ) -> Any:
        return self.bench.ask(
            self.tape.claim(
                delivery=delivery,
                try_=try_,
                worker=worker,
                upstream="u",
                token=token,
                reason=reason,
                budget=budget,
                retention_s=self.retention_s,
            )
        )

    def append(self, attempt: int, first_seq: int, *chunks: str | bytes, token: str = "token-1") -> Any:
        encoded = [chunk.encode() if isinstance(chunk, str) else chunk for chunk in chunks]
        return self.bench.ask(self.tape.append(attempt, token, first_seq, encoded))

    def end(
        self,
        attempt: int,
        seq: int,
        *,
        token: str = "token-1",
        status: EndStatus = "completed",
        result: bytes = b'{"id":"answer"}',
    ) -> Any:
        data = EndData(status=status, attempts=attempt)
        return self.bench.ask(self.tape.end(Position(attempt, seq), token, data, result, self.retention_s))

    def settle(self, status: EndStatus = "cancelled", *, if_overdue: bool = False) -> Any:
        error = ErrorInfo(type=status, message="from outside")
        return self.bench.ask(self.tape.settle(status, error, self.retention_s, if_overdue=if_overdue))

    def rows(self) -> list[tuple[str, dict[str, str]]]:
        """Every entry, by plain XRANGE."""
        rows: list[tuple[str, dict[str, str]]] = texts(self.bench.client.xrange(self.tape.key))
        return rows

    def ids(self) -> list[str]:
        return [entry_id for entry_id, _ in self.rows()]

    def ttls_ms(self) -> list[int]:
        """What is left to the tape, the result and the request; -2 where there is none."""
        return [
            int(self.bench.client.pttl(key)) for key in (self.tape.key, self.tape.result_key, self.tape.request_key)
        ]


@dataclass
class QueueBench:
    """The queue side of one namespace."""

    bench: Bench
    keys: QueueKeys = field(init=False)

    def __post_init__(self) -> None:
        self.keys = QueueKeys(self.bench.namespace)

    def enqueue(self, job_id: str, priority: Priority = "default", *, deadline_at_ms: int = 0) -> Any:
        command = enqueue(self.keys, job_id, priority, timeout_s=600, deadline_at_ms=str(deadline_at_ms), keep_s=3600)
        return self.bench.ask(command)

    def worker(self, name: str, *, lease_s: float = 60.0) -> WorkerBench:
        """A worker that has joined."""
        worker = WorkerBench(self.bench, Ownership(self.keys, name))
        worker.join(lease_s)
        return worker

    def waiting(self, priority: Priority = "default") -> list[str]:
        """The ids in a queue, front first."""
        ids: list[str] = texts(self.bench.client.lrange(self.keys.queue(priority), 0, -1))
        return ids

    def suspects(self, priority: Priority = "default") -> list[str]:
        ids: list[str] = texts(self.bench.client.lrange(self.keys.suspects(priority), 0, -1))
        return ids

    def owner(self, job_id: str) -> str | None:
        """The name of the worker that owns a job."""
        record = texts(self.bench.client.hget(self.keys.owners, job_id))
        return None if record is None else str(record).split("|")[0]

    def open_until_ms(self, job_id: str) -> float | None:
        score: float | None = self.bench.client.zscore(self.keys.open, job_id)
        return score

    def due(self) -> own.Due:
        return own.Due.decode(self.bench.ask(own.due(self.keys, 100)))

    def promote(self, job_id: str, priority: Priority = "default") -> Any:
        return self.bench.ask(own.promote(self.keys, job_id, priority))

    def reopen(self, job_id: str, *, deadline_at_ms: int = 9_999_999_999_999, astray: bool = False) -> Any:
        return self.bench.ask(own.reopen(self.keys, job_id, "default", str(deadline_at_ms), astray=astray))

    def forget(self, job_id: str) -> Any:
        return self.bench.ask(own.forget(self.keys, job_id))

    def audit(self, first: int = 0, last: int = 99, *, most_listed: int = 100) -> Any:
        return self.bench.ask(own.audit(self.keys, first, last, most_listed))

    def trim(self, retention_s: float) -> Any:
        return self.bench.ask(own.trim(self.keys, retention_s))


@dataclass
class WorkerBench:
    """One worker name's commands."""

    bench: Bench
    ownership: Ownership

    @property
    def name(self) -> str:
        return self.ownership.worker

    def join(self, lease_s: float = 60.0) -> Any:
        return self.bench.ask(self.ownership.join(lease_s))

    def renew(self, lease_s: float = 60.0) -> Any:
        return self.bench.ask(self.ownership.renew(lease_s))

    def lapse(self) -> None:
        """Let the lease run out now, as if its time had passed."""
        self.bench.client.zadd(self.ownership.keys.leases, {self.name: 1})

    def pop(self, most: int = 10, *, alone_after: int = 2) -> list[Delivery]:
        deliveries = own.deliveries(self.bench.ask(self.ownership.pop(most, alone_after=alone_after)))
        assert deliveries is not None, "the lease is not live"
        return deliveries

    def pop_one(self) -> Delivery:
        (delivery,) = self.pop(1)
        return delivery

    def adopt(self, job_id: str, priority: Priority = "default", *, lease_s: float = 60.0) -> Any:
        return self.bench.ask(self.ownership.adopt(job_id, priority, lease_s))

    def mine(self) -> list[Delivery]:
        return own.owned(self.bench.ask(self.ownership.mine()))

    def held(self) -> list[str]:
        """The worker's own list, oldest first."""
        ids: list[str] = texts(self.bench.client.lrange(self.ownership.list_key, 0, -1))
        return ids

    def start(self, job: Delivery, ttl_s: float = 3600.0) -> Any:
        return self.bench.server.run([self.ownership.start(job, ttl_s)])[0]

    def ack(
        self, job: Delivery, status: EndStatus = "completed", error: ErrorInfo | None = None, *, settle_s: float = 10.0
    ) -> Any:
        return self.bench.ask(self.ownership.ack(job, status, error, settle_s=settle_s, keep_s=3600))

    def putback(self, job: Delivery, reason: str = "drained", *, pass_delivery: int | None = None) -> Any:
        return self.bench.ask(self.ownership.putback(job, reason, pass_delivery=pass_delivery))

    def delay(self, job: Delivery, wait_s: float = 60.0, *, reason: str = "wait") -> Any:
        return self.bench.ask(self.ownership.delay(job, wait_s, reason=reason))

    def release(self, mode: str) -> list[str]:
        """Every round of a release. -> the verdicts, in order."""
        verdicts: list[str] = []
        reply = self.bench.ask(self.ownership.release(mode))
        while (rest := own.rest_of(reply)) is not None:
            verdicts.append("more")
            reply = self.bench.ask(self.ownership.release(mode, rest))
        return [*verdicts, reply[0]]

    def die(self) -> list[str]:
        """The lease runs out, and another worker reaps it."""
        self.lapse()
        return self.release("reap")
