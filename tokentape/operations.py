"""What a client's calls ask the servers, and what they make of the answers. No I/O here.

Each operation is a generator: it yields `Ask`s, is sent the replies, and returns the result. `Client` drives them over
blocking connections, `AsyncClient` over asyncio; neither decides anything. Every ask may be repeated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, cast

from pydantic import BaseModel, Field, ValidationError

from . import queue, tape
from .catalog import Catalog
from .chunk import Usage
from .completion import ChatCompletion, Fold
from .errors import (
    CorruptTape,
    IdempotencyConflict,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobNotFound,
    UnknownFormat,
)
from .job import ENDED, PRIORITIES, ChatJob, ErrorInfo, Priority, Status, is_job_id
from .queue import QueueKeys
from .scripts import Command
from .settings import Settings
from .tape import AttemptData, EndData, Entry, Position, QueuedData, Tape, check_head, decode_entry, rows_of, text_of

T = TypeVar("T")

#: Entries read at once, when a reader catches up.
PAGE: Final = 500

CLIENT_SCRIPTS: Final = (*tape.SCRIPTS, *queue.SCRIPTS)


@dataclass(frozen=True)
class Ask:
    """Commands for one server, in one round trip."""

    server: Literal["tape", "queue"]
    commands: list[Command]
    atomic: bool = False
    durable: bool = False


Steps = Generator[Ask, list[Any], T]


class JobView(BaseModel, frozen=True):
    """A job as its tape shows it now. Times are seconds since the epoch, by the server's clock.

    `id`, and `object`, which is always "job".
    `status`: "queued", "running", "waiting" (for a retry, later), "completed", "failed", "cancelled" or "expired".
    `model`, `priority`, `metadata`: as submitted.
    `upstream`: the one that the newest attempt calls; before the first, the one that was asked for, if any.
    `attempts`: how many have begun.
    `created_at`: when it was submitted. `started_at`: when the newest attempt began. `ended_at`: when it ended.
    `deadline_at`: when it expires, or would have.
    `error`: why it ended without a completion. `usage`: the tokens of one that ended.
    `last_entry_id`: the id of the newest entry of its tape.
    """

    id: str
    object: Literal["job"] = "job"
    status: Status
    model: str
    upstream: str | None = None
    priority: str = "default"
    metadata: dict[str, str] = Field(default_factory=dict)
    attempts: int = 0
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    deadline_at: float
    error: ErrorInfo | None = None
    usage: Usage | None = None
    last_entry_id: str


class WorkerView(BaseModel):
    """One worker, by its `name`.

    `lease_s`: how long its lease still holds (negative: how long it has been dead).
    `jobs`: how many it has.
    """

    name: str
    lease_s: float
    jobs: int


class Overview(BaseModel):
    """The whole service now, in numbers of jobs: enough to see why nothing moves.

    `queued`: by priority.
    `suspects`: queued too, apart from the others: two workers died with them.
    `waiting`: for a retry, or for their turn at an upstream with limits, without a slot.
    `running`: owned by a worker; by a dead one, too, until the others put back what it had.
    `open`: all that have not ended, and for some seconds those that have.
    `oldest_queued_s`: how long ago the first of those that stand in a queue was submitted; None where none does.
    `workers`: all that hold a lease, or whose lease nobody has cleared away yet.
    """

    queued: dict[str, int]
    suspects: int
    waiting: int
    running: int
    open: int
    oldest_queued_s: float | None
    workers: list[WorkerView]


@dataclass(frozen=True)
class Operations:
    """The operations, for one namespace. `one_server`: tapes and queue share a server, and so a transaction."""

    settings: Settings
    one_server: bool

    @property
    def keys(self) -> QueueKeys:
        return QueueKeys(self.settings.namespace)

    def tape(self, job_id: str) -> Tape:
        """A job's tape. Raises JobNotFound for what is no job id, without asking anybody."""
        if not is_job_id(job_id):
            raise JobNotFound(job_id, "not a job id (job_ and 32 hex digits)")
        return Tape(self.settings.namespace, job_id)

    # ---- submit

    def submit(self, jobs: Sequence[ChatJob], *, fresh: bool, durable: bool = False) -> Steps[None]:
        """Submit jobs together. `fresh`: their ids are random, so no tape of theirs can stand yet.

        The tape is asked first: a transaction does not roll back, and would enqueue what turns out to be in conflict.
        """
        bodies = [job.body() for job in jobs]
        hashes = [hashlib.sha256(body).hexdigest() for body in bodies]
        standing = ["new"] * len(jobs)
        if not fresh:
            standing = yield from self._ask_first(jobs, hashes)
        tapes: list[Command] = []
        queues: list[Command] = []
        for job, body, digest, verdict in zip(jobs, bodies, hashes, standing, strict=True):
            if verdict == "ended":
                continue
            tapes.append(self.tape(job.id).submit(job, body, digest, self._margin_s))
            keep = self.settings.retention_s
            queues.append(
                queue.enqueue(self.keys, job.id, job.priority, timeout_s=job.timeout_s, deadline_at_ms="0", keep_s=keep)
            )
        if not tapes:
            return
        todo = [job for job, verdict in zip(jobs, standing, strict=True) if verdict != "ended"]
        if self.one_server:
            replies = yield Ask("tape", [*tapes, *queues], atomic=True, durable=durable)
            self._no_conflict(todo, replies[: len(tapes)])
        else:
            replies = yield Ask("tape", tapes, durable=durable)
            self._no_conflict(todo, replies)
            yield Ask("queue", queues, atomic=True, durable=durable)

    def _ask_first(self, jobs: Sequence[ChatJob], hashes: Sequence[str]) -> Steps[list[str]]:
        commands: list[Command] = []
        for job in jobs:
            commands += (self.tape(job.id).first(), self.tape(job.id).last())
        replies = yield Ask("tape", commands)
        verdicts = []
        for index, (job, digest) in enumerate(zip(jobs, hashes, strict=True)):
            first, last = replies[2 * index], replies[2 * index + 1]
            if not first:
                verdicts.append("new")
                continue
            data = decode_entry(job.id, first[0]).data
            if not isinstance(data, QueuedData) or data.request_sha256 != digest:
                raise IdempotencyConflict(job.id)
            verdicts.append("ended" if decode_entry(job.id, last[0]).kind == "end" else "same")
        return verdicts

    def _no_conflict(self, jobs: Sequence[ChatJob], replies: Sequence[Any]) -> None:
        for job, reply in zip(jobs, replies, strict=True):
            if text_of(reply[0]) == "conflict":
                raise IdempotencyConflict(job.id)

    @property
    def _margin_s(self) -> float:
        # An ended job is kept for its retention; one that nobody could end, all workers being away, no shorter.
        return max(self.settings.expiry_margin_s, self.settings.retention_s)

    def check_upstream(self, name: str) -> Steps[None]:
        """Raise InvalidRequest for an upstream that neither these settings nor any worker knows."""
        catalog = yield from self.catalog()
        catalog.named(name)

    def catalog(self) -> Steps[Catalog]:
        """The upstreams that there are."""
        (reply,) = yield Ask("queue", [("HGETALL", self.keys.upstreams)])
        pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
        return Catalog(self.settings, dict(pairs))

    # ---- read

    def page(self, at: Tape, after: Position, count: int = PAGE) -> Steps[list[tuple[Any, Any]]]:
        """The rows after a position; none also where no tape stands."""
        (rows,) = yield Ask("tape", [at.page(after, count)])
        return rows_of(rows)

    def entry(self, at: Tape, position: Position) -> Steps[Entry | None]:
        """The entry at a position, or None."""
        (rows,) = yield Ask("tape", [at.at(position)])
        return decode_entry(at.job_id, rows[0]) if rows else None

    def last(self, at: Tape) -> Steps[Entry]:
        """The last entry. Raises JobNotFound, UnknownFormat."""
        first, rows = yield Ask("tape", [at.first(), at.last()])
        if not rows:
            raise JobNotFound(at.job_id)
        check_head(at.job_id, first)
        return decode_entry(at.job_id, rows[0])

    def completion(self, job_id: str, end: Entry) -> Steps[ChatCompletion]:
        """What an ended job came to. Raises JobFailed, JobCancelled or JobExpired."""
        data = end.expect(EndData)
        if data.status != "completed":
            raise failure(job_id, data)
        at = self.tape(job_id)
        (stored,) = yield Ask("tape", [at.result()])
        if stored is not None:
            try:
                return ChatCompletion.model_validate_json(stored)
            except ValidationError as error:
                raise CorruptTape(job_id, end.id, f"the stored result is unreadable: {error.title}") from error
        return (yield from self.partial(job_id, end.position.attempt))

    def partial(self, job_id: str, attempt: int) -> Steps[ChatCompletion]:
        """What the chunks of one attempt come to, complete or not."""
        at, fold = self.tape(job_id), Fold()
        after = Position(attempt, 0)
        while True:
            (reply,) = yield Ask("tape", [at.page(after, PAGE)])
            rows = rows_of(reply)
            for row in rows:
                entry = decode_entry(job_id, row)
                if entry.kind != "chunk" or entry.position.attempt != attempt:
                    return fold.completion()
                fold.add(entry.data)  # type: ignore[arg-type]
                after = entry.position
            if len(rows) < PAGE:
                return fold.completion()

    def view(self, job_id: str) -> Steps[JobView]:
        """The job as its tape shows it. Raises JobNotFound."""
        at = self.tape(job_id)
        first_rows, last_rows = yield Ask("tape", [at.first(), at.last()])
        if not first_rows:
            raise JobNotFound(job_id)
        first, last = decode_entry(job_id, first_rows[0]).data, decode_entry(job_id, last_rows[0])
        if not isinstance(first, QueuedData):
            raise CorruptTape(job_id, text_of(first_rows[0][0]), "a tape begins with a queued entry")
        end = last.data if isinstance(last.data, EndData) else None
        attempts = end.attempts if end else last.position.attempt
        begun = (yield from self.entry(at, Position(attempts, 0))) if attempts else None
        attempt = begun.data if begun and isinstance(begun.data, AttemptData) else None
        status: Status = end.status if end else ("running" if attempt else "queued")
        if status not in ENDED:
            owned, delayed = yield Ask(
                "queue",
                [("HEXISTS", self.keys.owners, job_id), ("ZSCORE", self.keys.delayed(first.priority), job_id)],
            )
            if delayed is not None:
                status = "waiting"
            elif attempt and not owned:
                status = "queued"  # given back, or lost with its worker: it stands in a queue again
        return JobView(
            id=job_id,
            status=status,
            model=first.model,
            upstream=attempt.upstream if attempt else first.upstream,
            priority=first.priority,
            metadata=first.metadata,
            attempts=attempts,
            created_at=first.submitted_at_ms / 1000,
            started_at=attempt.started_at_ms / 1000 if attempt else None,
            ended_at=end.ended_at_ms / 1000 if end else None,
            deadline_at=first.deadline_at_ms / 1000,
            error=end.error if end else None,
            usage=end.usage if end else None,
            last_entry_id=last.id,
        )

    def overview(self) -> Steps[Overview]:
        """Queue depths, workers, running, waiting, the oldest queued."""
        keys = self.keys
        replies = yield Ask(
            "queue",
            [
                ("TIME",),
                ("ZRANGE", keys.leases, 0, -1, "WITHSCORES"),
                ("HLEN", keys.owners),
                ("ZCARD", keys.open),
                *(("LLEN", key) for key in keys.queues),
                *(("LLEN", key) for key in keys.all_suspects),
                *(("ZCARD", key) for key in keys.all_delayed),
                *(("LINDEX", key, 0) for key in (*keys.queues, *keys.all_suspects)),
            ],
        )
        now, leases, running, open_jobs = replies[:4]
        counts, heads = replies[4:13], [head for row in replies[13:] if (head := _job_id(row)) is not None]
        now_s = int(now[0]) + int(now[1]) / 1e6
        names = [(text_of(row[0]), float(row[1])) for row in pairs(leases)]
        jobs = (yield Ask("queue", [("LLEN", keys.worker_jobs(name)) for name, _ in names])) if names else []
        firsts = (yield Ask("tape", [self.tape(head).first() for head in heads])) if heads else []
        submitted = [_submitted_at_s(head, rows) for head, rows in zip(heads, firsts, strict=True)]
        waits = [now_s - at_s for at_s in submitted if at_s is not None]
        return Overview(
            queued=dict(zip(PRIORITIES, counts[:3], strict=True)),
            suspects=sum(counts[3:6]),
            waiting=sum(counts[6:9]),
            running=running,
            open=open_jobs,
            oldest_queued_s=max(waits) if waits else None,
            workers=[
                WorkerView(name=name, lease_s=round(until / 1000 - now_s, 3), jobs=count)
                for (name, until), count in zip(names, jobs, strict=True)
            ],
        )

    # ---- cancel

    def cancel(self, job_id: str) -> Steps[bool]:
        """End a job as cancelled. -> False where it had ended already. Safe to repeat.

        Raises JobNotFound, and UnknownFormat for a tape that this version must not write to.
        """
        error = ErrorInfo(type="cancelled", message="cancelled by a client", retryable=False)
        (reply,) = yield Ask("tape", [self.tape(job_id).settle("cancelled", error, self.settings.retention_s)])
        verdict = text_of(reply[0])
        if verdict == "gone":
            raise JobNotFound(job_id)
        if verdict == "format":
            raise UnknownFormat(job_id, "0-1", json.loads(reply[1]), tape.FORMAT)
        if verdict == "ended":
            return False
        yield Ask("queue", [queue.notice(self.keys, job_id, cast(Priority, text_of(reply[1])))])
        return True


def _job_id(queued: Any) -> str | None:
    """A queue's entry, where it is the id of a job: others may write to a queue, too."""
    text = queued.decode(errors="replace") if isinstance(queued, bytes) else str(queued)
    return text if is_job_id(text) else None


def _submitted_at_s(job_id: str, first: Any) -> float | None:
    try:
        data = decode_entry(job_id, first[0]).data if first else None
    except CorruptTape:
        return None  # whoever follows that job is told
    return data.submitted_at_ms / 1000 if isinstance(data, QueuedData) else None


def failure(job_id: str, end: EndData) -> JobFailed | JobCancelled | JobExpired:
    """The exception for an end that is no completion."""
    error = end.error or ErrorInfo(type=end.status, message="no reason was recorded")
    if end.status == "cancelled":
        return JobCancelled(job_id, error)
    return JobExpired(job_id, error) if end.status == "expired" else JobFailed(job_id, error)


def pairs(reply: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Members and scores of a WITHSCORES reply, of either protocol version."""
    if not reply or isinstance(reply[0], list | tuple):
        return [(row[0], row[1]) for row in reply]
    return list(zip(reply[::2], reply[1::2], strict=True))
