"""The sweep: what every worker looks after, each `sweep_s`, on the server's clock.

- its own list: a job that it owns and does not run (a lost reply) is run, one that it runs and does not own is stopped;
- delayed jobs whose time has come go back into their queues;
- workers whose lease is past are reaped, once this worker's own lease is steady;
- open jobs past their time: the overdue are ended as expired, the acknowledged are checked (did the end survive?);
- open jobs that stand nowhere (a stock worker that died between popping and adopting) are put back, once seen so twice.

Each step is safe to repeat and safe beside other sweepers: the scripts decide, whoever asks first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import structlog
from redis.exceptions import ResponseError
from rq.defaults import RQ_KEY_PREFIX

from tokentape.job import PRIORITIES, EndStatus, ErrorInfo, Priority
from tokentape.queue import QueueKeys
from tokentape.scripts import Command
from tokentape.settings import Settings
from tokentape.tape import Tape, text_of

from . import ownership as own
from .ledger import Ledger
from .ownership import Delivery, Due, Ownership
from .pipelined import Pipelined

log: structlog.stdlib.BoundLogger = structlog.get_logger("tokentape.worker")

#: What one sweep takes on at most of each kind; the next one goes on.
_MOST: Final = 500
#: Beyond this many queued jobs the queues are not compared with the open jobs.
_MOST_LISTED: Final = 1000
#: One in so many sweeps audits the open jobs.
_AUDIT_EVERY: Final = 5

#: What a script says of a key that holds no tape. It would say the same at every sweep.
_NO_TAPE: Final = ("WRONGTYPE", "user_script:")

_EXPIRED: Final = ErrorInfo(type="expired", message="the job's deadline passed", retryable=True)


class Sweeper:
    """The sweeps of one worker process. `steady` says whether its lease allows it to judge others."""

    def __init__(self, settings: Settings, ledger: Ledger, tapes: Pipelined, steady: Callable[[], bool]) -> None:
        self._settings = settings
        self._keys = QueueKeys(settings.namespace)
        self._ledger = ledger
        self._tapes = tapes
        self._steady = steady
        self._sweeps = 0
        self._audited = 0
        self._astray: set[str] = set()

    async def mine(self, ownership: Ownership) -> list[Delivery]:
        """What this worker owns."""
        return own.owned(await self._ledger.one(ownership.mine()))

    async def sweep(self, worker: str) -> None:
        """One round of everything that is not about this worker's own jobs."""
        due = Due.decode(await self._ledger.one(own.due(self._keys, _MOST)))
        if due.delayed:
            await self._ledger.run(*(own.promote(self._keys, job_id, priority) for job_id, priority in due.delayed))
        if self._steady():
            for dead in due.dead_workers:
                if dead != worker:
                    await self.reap(dead)
        if due.overdue:
            await self._settle(due.overdue)
        self._sweeps += 1
        if self._sweeps % _AUDIT_EVERY == 0:
            await self._audit()
            await self._ledger.one(own.trim(self._keys, self._settings.retention_s))

    async def reap(self, worker: str) -> None:
        """Put back what a dead worker owns, and take it off RQ's list of workers."""
        moved = await release(self._ledger, Ownership(self._keys, worker), "reap")
        if moved is None:
            return
        log.warning("worker reaped", dead=worker, jobs=moved)
        await self._ledger.run(*_unregister(self._keys, worker))

    async def _settle(self, job_ids: list[str], *, astray: bool = False) -> None:
        """Open jobs whose time is past, or that stand nowhere: expire, put back, or forget, as their tapes say."""
        namespace, retention_s = self._settings.namespace, self._settings.retention_s
        settles = [
            Tape(namespace, job_id).settle("expired", _EXPIRED, retention_s, if_overdue=True) for job_id in job_ids
        ]
        # One by one, in one round trip: a key that is no tape must not hold up the others.
        replies = await asyncio.gather(*(self._tapes.run([settle]) for settle in settles), return_exceptions=True)
        commands: list[Command] = []
        for job_id, outcome in zip(job_ids, replies, strict=True):
            if isinstance(outcome, BaseException):
                if not isinstance(outcome, ResponseError) or not str(outcome).startswith(_NO_TAPE):
                    raise outcome
                log.error("job cannot be ended on its tape", job_id=job_id, error=str(outcome))
                commands.append(own.forget(self._keys, job_id))
                continue
            (reply,) = outcome
            verdict = text_of(reply[0])
            if verdict == "format":
                continue  # stays open, for the sweeps of workers that can read it
            if verdict == "early":
                log.info("job is not over on its tape", job_id=job_id)
                deadline_at_ms = text_of(reply[1])
                commands.append(own.reopen(self._keys, job_id, _priority(reply[2]), deadline_at_ms, astray=astray))
            else:
                ended = _ended(verdict, reply)
                # An end that was written only now can be lost to a failover like any other.
                watch_s = self._settings.settle_s if verdict == "ok" else 0.0
                forget = own.forget(self._keys, job_id, ended, keep_s=retention_s, watch_s=watch_s, astray=astray)
                commands.append(forget)
                if verdict == "ok":
                    log.info("job expired", job_id=job_id)
        await self._ledger.run(*commands)

    async def _audit(self) -> None:
        """The next stretch of open jobs: those that stood nowhere at two audits in a row are put back."""
        first, last = self._audited, self._audited + _MOST - 1
        reply = await self._ledger.one(own.audit(self._keys, first, last, _MOST_LISTED))
        looked_at = int(reply[0])
        astray = {text_of(job_id) for job_id in reply[1:]}
        again, self._astray = astray & self._astray, astray
        if not astray:
            self._audited = self._audited + looked_at if looked_at == _MOST else 0
        if not again:
            return
        await self._settle(sorted(again), astray=True)


async def release(ledger: Ledger, ownership: Ownership, mode: str) -> int | None:
    """Put back all that a worker owns and drop its lease. -> how many jobs, or None where there was nothing to do."""
    moved = 0
    reply = await ledger.one(ownership.release(mode))
    if text_of(reply[0]) in ("alive", "none"):
        return None
    while (rest := own.rest_of(reply)) is not None:
        moved += len(rest)
        reply = await ledger.one(ownership.release(mode, rest))
    return moved


def _unregister(keys: QueueKeys, worker: str) -> list[Command]:
    """What RQ's own registration of a worker's death does (rq.worker_registration.unregister)."""
    key = f"{RQ_KEY_PREFIX}:worker:{worker}"
    by_queue: list[Command] = [
        ("SREM", f"{RQ_KEY_PREFIX}:workers:{keys.queue_name(priority)}", key) for priority in PRIORITIES
    ]
    return [("SREM", f"{RQ_KEY_PREFIX}:workers", key), *by_queue, ("DEL", key)]


def _ended(verdict: str, reply: Sequence[Any]) -> tuple[EndStatus, Priority] | None:
    """What a job ended with and where it was queued, as `settle` found or left it; None where no tape stands."""
    if verdict == "ok":
        return "expired", _priority(reply[1])
    return (cast(EndStatus, text_of(reply[1])), _priority(reply[2])) if verdict == "ended" else None


def _priority(value: Any) -> Priority:
    return cast(Priority, text_of(value))
