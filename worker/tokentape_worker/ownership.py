"""Who owns which job: the commands of the queue side, for one worker.

A worker owns what it has popped until it acknowledges it (the tape has ended), puts it back (drain), delays it (a retry
later), leaves, or is reaped by another worker because its lease ran out. Every command that ends an ownership acts only
for the current owner and delivery, and moves RQ's record in the same script, so that a worker that was overtaken
changes nothing, neither in our books nor in RQ's. Key map: tokentape/queue.py.

This module encodes and decodes; it does no I/O.
"""

from __future__ import annotations

import json
import time
import zlib
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from rq.results import Result

from tokentape.job import PRIORITIES, EndStatus, ErrorInfo, Priority
from tokentape.queue import RQ, QueueKeys, rq_job_key, rq_time
from tokentape.scripts import Command, Script, load
from tokentape.tape import text_of


def _load(name: str, *, allow_oom: bool = True) -> Script:
    """Where memory is full, workers keep their leases, finish and give back what they own, and reap the dead."""
    return load("tokentape_worker", name, "tokentape/_clock", "_owner", allow_oom=allow_oom)


JOIN: Final = _load("join")
RENEW: Final = _load("renew")
POP: Final = _load("pop", allow_oom=False)  # and take nothing on
MINE: Final = _load("mine")
START: Final = _load("start")
ACK: Final = _load("ack")
PUTBACK: Final = _load("putback")
DELAY: Final = _load("delay")
RELEASE: Final = _load("release")
ADOPT: Final = _load("adopt")
DUE: Final = _load("due")
PROMOTE: Final = _load("promote")
REOPEN: Final = _load("reopen")
FORGET: Final = _load("forget")
AUDIT: Final = _load("audit")
TRIM: Final = _load("trim")
SCRIPTS: Final = (
    JOIN, RENEW, POP, MINE, START, ACK, PUTBACK, DELAY, RELEASE, ADOPT, DUE, PROMOTE, REOPEN, FORGET, AUDIT, TRIM,
)  # fmt: skip

#: How RQ's records call what a tape ended with, and the counter of the worker that goes with it.
_RQ_STATUS: Final[dict[EndStatus, tuple[str, str]]] = {
    "completed": ("finished", "successful_job_count"),
    "failed": ("failed", "failed_job_count"),
    "expired": ("failed", "failed_job_count"),
    "cancelled": ("canceled", "failed_job_count"),
}

#: RQ's registries of ended jobs, one of each per queue: a job stands in one of them.
_RQ_ENDED: Final = ("finished", "failed", "canceled")


class Delivery(NamedTuple):
    """One popped job: `number` only grows, `reason` is why it stood in a queue."""

    job_id: str
    number: int
    reason: str
    priority: Priority


@dataclass(frozen=True)
class Ownership:
    """The commands of one worker name. Replies are decoded by the functions below."""

    keys: QueueKeys
    worker: str

    @property
    def list_key(self) -> str:
        return self.keys.worker_jobs(self.worker)

    @property
    def _executions_key(self) -> str:
        return f"{RQ}:worker:{self.worker}:executions"

    def _record(self, job: Delivery) -> tuple[str, str, str, str, str]:
        """RQ job, wip, execution, executions, executions of the worker."""
        wip = f"{RQ}:wip:{self.keys.queue_name(job.priority)}"
        return (rq_job_key(job.job_id), wip, *_execution_keys(job.job_id, job.number), self._executions_key)

    # ---- the lease

    def join(self, lease_s: float) -> Command:
        """Enter under a name that was never used before."""
        return JOIN.call((self.keys.leases,), self.worker, _ms(lease_s))

    def renew(self, lease_s: float) -> Command:
        """-> 1, or 0: this name is dead for good."""
        return RENEW.call((self.keys.leases,), self.worker, _ms(lease_s))

    def adopt(self, job_id: str, priority: Priority, lease_s: float) -> Command:
        """-> [delivery, reason], or [0]: somebody else owns it."""
        keys = (self.keys.leases, self.keys.owners, self.keys.deliveries, self.keys.reasons, self.list_key)
        return ADOPT.call(keys, self.worker, job_id, _ms(lease_s), PRIORITIES.index(priority))

    # ---- one job

    def pop(self, most: int, *, alone_after: int = 2) -> Command:
        """-> see `deliveries`. After a reply that was lost, `mine` says what came of it.

        A job that `alone_after` workers died with stands beside no other suspect; one with fewer losses beside a few.
        """
        keys = self.keys
        fixed = (keys.leases, keys.owners, keys.deliveries, keys.reasons, keys.lost, self.list_key)
        return POP.call((*fixed, *keys.all_suspects, *keys.queues), self.worker, most, alone_after)

    def mine(self) -> Command:
        """-> see `owned`."""
        return MINE.call((self.keys.owners, self.list_key), self.worker)

    def start(self, job: Delivery, ttl_s: float) -> Command:
        """RQ's record: it runs here. `ttl_s` outlasts the job's deadline, so that RQ's sweeps leave it to ours.

        -> [1, RQ's payload], [1] where RQ has no record, [0] where the ownership is over.
        """
        args = (self.worker, job.job_id, job.number, rq_time(), int(time.time()), int(ttl_s))
        return START.call((self.keys.owners, *self._record(job)), *args)

    def ack(
        self, job: Delivery, status: EndStatus, error: ErrorInfo | None, *, settle_s: float, keep_s: float
    ) -> Command:
        """The tape has ended: RQ's record says the same. -> 1, or 0 where the ownership is over."""
        rq_status, counter = _RQ_STATUS[status]
        name = self.keys.queue_name(job.priority)
        keys = self.keys
        fixed = (keys.owners, self.list_key, keys.reasons, keys.open, keys.ended)
        others = (f"{RQ}:{other}:{name}" for other in _RQ_ENDED if other != rq_status)
        ended = (f"{RQ}:{rq_status}:{name}", *others, Result.get_key(job.job_id), f"{RQ}:worker:{self.worker}")
        return ACK.call(
            (*fixed, *self._record(job), *ended, keys.lost, keys.bell),
            *(self.worker, job.job_id, job.number, _ms(settle_s), rq_status, rq_time(), int(keep_s), counter),
            *self._rq_result(job, status, error),
        )

    def putback(self, job: Delivery, reason: str, *, pass_delivery: int | None = None) -> Command:
        """To the front of its queue, for any worker. `pass_delivery`: the next delivery's number is above this one.

        -> 1, or 0 where the ownership is over.
        """
        keys = self.keys
        fixed = (keys.owners, self.list_key, keys.reasons, keys.deliveries, keys.lost)
        line = (keys.queue(job.priority), keys.suspects(job.priority))
        args = (self.worker, job.job_id, job.number, reason, pass_delivery or "", rq_time())
        return PUTBACK.call((*fixed, *line, *self._record(job), keys.bell), *args)

    def delay(self, job: Delivery, wait_s: float, *, reason: str = "wait") -> Command:
        """Again after `wait_s`; the slot is free until then. -> 1, or 0 where the ownership is over.

        `reason`: the delivery's own, where nothing was claimed in it.
        """
        keys = self.keys
        fixed = (keys.owners, self.list_key, keys.reasons, keys.delayed(job.priority))
        scheduled = f"{RQ}:scheduled:{keys.queue_name(job.priority)}"
        args = (self.worker, job.job_id, job.number, _ms(wait_s), reason)
        return DELAY.call((*fixed, *self._record(job), scheduled, keys.lost, keys.bell), *args)

    # ---- everything that a worker owns

    def release(self, mode: str, owned: Iterable[tuple[str, str]] = ()) -> Command:
        """Put back all that this worker owns, then drop its lease: `leave` by itself, `reap` by another.

        Call it without ids, then with those that each answer names, until it says so: see `rest_of`.
        """
        keys = self.keys
        fixed = (keys.leases, keys.owners, keys.reasons, keys.lost, self.list_key, self._executions_key, keys.bell)
        wips = tuple(f"{RQ}:wip:{keys.queue_name(priority)}" for priority in PRIORITIES)
        per_job: list[str] = []
        ids: list[str] = []
        for job_id, delivery in owned:
            per_job += (rq_job_key(job_id), *_execution_keys(job_id, delivery))
            ids.append(job_id)
        all_keys = (*fixed, *keys.queues, *keys.all_suspects, *wips, *per_job)
        return RELEASE.call(all_keys, self.worker, mode, rq_time(), *ids)

    def _rq_result(self, job: Delivery, status: EndStatus, error: ErrorInfo | None) -> list[Any]:
        """The fields of RQ's result entry (rq.results.Result.serialize). It never holds an answer."""
        completed = status == "completed"
        kind = Result.Type.SUCCESSFUL if completed else Result.Type.FAILED
        fields: list[Any] = ["type", kind.value, "worker_name", self.worker, "execution_id", job.number]
        if not completed:
            what = f"{error.type}" if error else status
            text = f"{job.job_id} {status} ({what}): its tape says more (tokentape status {job.job_id})"
            fields += ["exc_string", b64encode(zlib.compress(text.encode())).decode()]
        return fields


# ---- housekeeping: the same for every worker


def due(keys: QueueKeys, most: int) -> Command:
    """What a sweep has to look at. -> see `Due`"""
    return DUE.call((keys.open, keys.leases, *keys.all_delayed), most)


def promote(keys: QueueKeys, job_id: str, priority: Priority) -> Command:
    """A delayed job is due: into its queue. Safe to repeat. -> 1 | 0"""
    scheduled = f"{RQ}:scheduled:{keys.queue_name(priority)}"
    line = (keys.delayed(priority), keys.queue(priority), keys.suspects(priority), keys.lost)
    return PROMOTE.call((*line, rq_job_key(job_id), scheduled, keys.bell), job_id, rq_time())


def reopen(keys: QueueKeys, job_id: str, priority: Priority, deadline_at_ms: str, *, astray: bool = True) -> Command:
    """An open job that nobody owns and no queue holds: into its queue. Safe to repeat. -> 1 | 0

    Where it is not known to be `astray`, only if it was acknowledged, which tells that no queue holds it.
    """
    fixed = (keys.owners, keys.open, keys.ended, keys.reasons, keys.lost, keys.queue(priority), keys.suspects(priority))
    registries = (f"{RQ}:{status}:{keys.queue_name(priority)}" for status in _RQ_ENDED)
    all_keys = (*fixed, rq_job_key(job_id), *registries, keys.bell)
    return REOPEN.call(all_keys, job_id, deadline_at_ms, rq_time(), int(astray))


def forget(
    keys: QueueKeys,
    job_id: str,
    ended: tuple[EndStatus, Priority] | None = None,
    *,
    keep_s: float = 0.0,
    watch_s: float = 0.0,
    astray: bool = False,
) -> Command:
    """A job whose end was seen to stand leaves the open jobs. Safe to repeat. -> 1 | 0

    `ended` is what its tape says, for RQ's record, which is kept for `keep_s`; None where no tape stands. `watch_s`:
    the end was written only now, and is looked at again after so long. `astray`: no queue holds the job and nobody owns
    it, so that its time need not be waited for.
    """
    status, priority = ended or ("expired", "default")
    rq_status, _ = _RQ_STATUS[status]
    name = keys.queue_name(priority)
    fixed = (keys.open, keys.ended, keys.owners, keys.deliveries, keys.reasons, keys.lost, keys.delayed(priority))
    others = (f"{RQ}:{other}:{name}" for other in _RQ_ENDED if other != rq_status)
    record = (rq_job_key(job_id), f"{RQ}:scheduled:{name}", f"{RQ}:{rq_status}:{name}", *others)
    args = (job_id, int(astray), rq_status if ended else "", rq_time(), int(keep_s), _ms(watch_s))
    return FORGET.call((*fixed, *record), *args)


def audit(keys: QueueKeys, first: int, last: int, most_listed: int) -> Command:
    """Open jobs that stand nowhere, among the first..last. -> [looked at, id, …], or [-1]: too much is queued."""
    fixed = (keys.open, keys.owners, keys.ended, *keys.queues, *keys.all_suspects, *keys.all_delayed)
    return AUDIT.call(fixed, first, last, most_listed)


def trim(keys: QueueKeys, retention_s: float) -> Command:
    """Ended jobs whose retention is over leave the list of the ended, and RQ's. -> how many"""
    registries = (f"{RQ}:{status}:{keys.queue_name(priority)}" for status in _RQ_ENDED for priority in PRIORITIES)
    return TRIM.call((keys.ended, *registries), _ms(retention_s))


@dataclass(frozen=True)
class Due:
    """The reply to `due`."""

    overdue: list[str]
    dead_workers: list[str]
    delayed: list[tuple[str, Priority]]

    @classmethod
    def decode(cls, reply: Sequence[Any]) -> Due:
        texts = [[text_of(item) for item in part] for part in reply]
        delayed = [(job_id, priority) for priority, ids in zip(PRIORITIES, texts[2:5], strict=True) for job_id in ids]
        return cls(texts[0], texts[1], delayed)


def deliveries(reply: Sequence[Any]) -> list[Delivery] | None:
    """What `pop` moved; None where the popper's lease is not live, or the server has no memory left to run more."""
    if text_of(reply[0]) != "ok":
        return None
    rows = [reply[i : i + 4] for i in range(1, len(reply), 4)]
    return [Delivery(text_of(r[0]), int(r[1]), text_of(r[2]), PRIORITIES[int(r[3])]) for r in rows]


def owned(reply: Sequence[Any]) -> list[Delivery]:
    """What `mine` found. Why it was delivered was lost with pop's reply; a crash is the careful guess."""
    rows = [reply[i : i + 3] for i in range(0, len(reply), 3)]
    return [Delivery(text_of(r[0]), int(r[1]), "worker_lost", PRIORITIES[int(r[2])]) for r in rows]


def rest_of(reply: Sequence[Any]) -> list[tuple[str, str]] | None:
    """The ids (and deliveries) for the next call of `release`; None where it is done, or not to be done."""
    if text_of(reply[0]) != "more":
        return None
    return [(text_of(reply[i]), text_of(reply[i + 1])) for i in range(1, len(reply), 2)]


def payload_is_ours(data: bytes | None, job_id: str, entrypoint: str) -> bool:
    """Whether RQ's payload is JSON and names the entry point with this job. Pickle is never loaded."""
    if data is None:
        return True  # RQ has no record any more; the tape has
    try:
        # Bounded: ours is some 100 bytes, and a queue entry may come from anywhere.
        call = json.loads(
            zlib.decompressobj().decompress(data, 64 * 1024) if data[:1] == b"\x78" else data[: 64 * 1024]
        )
    except (ValueError, zlib.error, RecursionError):
        return False
    return bool(isinstance(call, list) and len(call) == 4 and call[0] == entrypoint and call[2] == [job_id])


def _execution_keys(job_id: str, delivery: int | str) -> tuple[str, str]:
    return f"{RQ}:execution:{job_id}:{delivery}", f"{RQ}:executions:{job_id}"


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
