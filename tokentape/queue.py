"""The queue side's keys, and what a client does there: enqueue, ring, look.

RQ's own structures (prefix `rq:`) say where the work is and stay true, so that RQ's tools show what goes on:

    rq:queue:tokentape-PRIORITY      list    job ids that wait; PRIORITY is high, default or low
    rq:job:ID                        hash    RQ's record of the job (JSON payload: the entry point and the id)
    rq:wip:… rq:finished:… rq:failed:… rq:canceled:… rq:scheduled:…    RQ's registries, one of each per queue

Ours, on the same server, decide who runs what (prefix: the namespace):

    :leases                zset   worker -> end of its lease in ms; 0 = condemned, being reaped
    :owners                hash   job id -> worker|delivery|queue index
    :deliveries            hash   job id -> the number of its last delivery; only grows
    :reasons               hash   job id -> why it stands in a queue again (drained, wait; absent: worker_lost)
    :lost                  hash   job id -> how many workers died with it
    :suspects:PRIORITY     list   jobs that two workers died with; run few per worker, the last attempt alone
    :delayed:PRIORITY      zset   job id -> when to try again, ms
    :open                  zset   job id -> its deadline, ms; once acknowledged, when it was, plus settle_s
    :ended                 zset   job id -> when it ended, ms; trimmed with the retention
    :worker:NAME:jobs      list   what a worker has popped and not yet given back
    :bell                  stream one entry: something was enqueued; wakes every idle worker, moves nothing
    :notices               stream ids of jobs that were cancelled, so that their workers need not wait for a sweep
    :limit:UPSTREAM        hash   requests, tokens -> when the upstream's budget is whole again, ms
    :upstreams             hash   name -> what it serves, as workers announce it: models and dialect, no address

RQ's record of a worker, rq:worker:NAME, has two fields more: the version and the upstreams (JSON) of a worker of ours.

The scripts that move jobs between these are in the worker's package; `enqueue` is the one that clients need.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final

from .job import ENTRYPOINT, PRIORITIES, Priority, canonical_json
from .scripts import Command, load

#: RQ's prefix, as rq.defaults reads it. Not imported: an application that submits needs nothing else of RQ.
RQ: Final = os.environ.get("RQ_KEY_PREFIX", "rq")

ENQUEUE: Final = load("tokentape", "enqueue", "_clock")
#: A script for its flag alone: a job can be cancelled on a server whose memory is full.
NOTICE: Final = load("tokentape", "notice", allow_oom=True)
SCRIPTS: Final = (ENQUEUE, NOTICE)

#: Cancel notices kept; a worker that misses one learns of the cancel at its next write or sweep.
NOTICES_KEPT: Final = 4096


@dataclass(frozen=True)
class QueueKeys:
    """Every key of the queue side, by namespace."""

    namespace: str

    def _own(self, name: str) -> str:
        return f"{self.namespace}:{name}"

    @cached_property
    def leases(self) -> str:
        return self._own("leases")

    @cached_property
    def owners(self) -> str:
        return self._own("owners")

    @cached_property
    def deliveries(self) -> str:
        return self._own("deliveries")

    @cached_property
    def reasons(self) -> str:
        return self._own("reasons")

    @cached_property
    def lost(self) -> str:
        return self._own("lost")

    @cached_property
    def open(self) -> str:
        return self._own("open")

    @cached_property
    def ended(self) -> str:
        return self._own("ended")

    @cached_property
    def bell(self) -> str:
        return self._own("bell")

    @cached_property
    def notices(self) -> str:
        return self._own("notices")

    @cached_property
    def upstreams(self) -> str:
        return self._own("upstreams")

    def limits(self, upstream: str) -> str:
        return self._own(f"limit:{upstream}")

    def suspects(self, priority: Priority) -> str:
        return self._own(f"suspects:{priority}")

    def delayed(self, priority: Priority) -> str:
        return self._own(f"delayed:{priority}")

    def worker_jobs(self, worker: str) -> str:
        return self._own(f"worker:{worker}:jobs")

    def queue_name(self, priority: Priority) -> str:
        """The name that RQ knows a queue by."""
        return f"{self.namespace}-{priority}"

    def queue(self, priority: Priority) -> str:
        return f"{RQ}:queue:{self.queue_name(priority)}"

    @cached_property
    def queues(self) -> tuple[str, ...]:
        """In the order in which they are popped."""
        return tuple(self.queue(priority) for priority in PRIORITIES)

    @cached_property
    def all_suspects(self) -> tuple[str, ...]:
        return tuple(self.suspects(priority) for priority in PRIORITIES)

    @cached_property
    def all_delayed(self) -> tuple[str, ...]:
        return tuple(self.delayed(priority) for priority in PRIORITIES)


#: Fields of ours in RQ's record of a worker.
VERSION_FIELD: Final = "tokentape_version"
UPSTREAMS_FIELD: Final = "tokentape_upstreams"


def rq_worker_key(name: str) -> str:
    """RQ's record of a worker."""
    return f"{RQ}:worker:{name}"


def rq_job_key(job_id: str) -> str:
    """RQ's record of a job."""
    return f"{RQ}:job:{job_id}"


def rq_time(moment: datetime | None = None) -> str:
    """A time as RQ writes it (rq.utils.utcformat)."""
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def rq_payload(job_id: str) -> bytes:
    """What RQ's JSONSerializer makes of a call of the entry point: function, instance, args, kwargs."""
    return canonical_json([ENTRYPOINT, None, [job_id], {}])


def enqueue(
    keys: QueueKeys, job_id: str, priority: Priority, *, timeout_s: float, deadline_at_ms: str, keep_s: float
) -> Command:
    """Put a job into RQ and among the open jobs, unless it stands there already. Safe to repeat. -> 1, or 0 if it did.

    `deadline_at_ms` is the tape's, "0" where it is not known yet (then: now plus `timeout_s`). `keep_s` is how long
    RQ keeps its record after the end.
    """
    now = rq_time()
    record: dict[str, Any] = {
        "created_at": now,
        "enqueued_at": now,
        "data": zlib.compress(rq_payload(job_id)),
        "origin": keys.queue_name(priority),
        "description": f"chat job {job_id}",
        "status": "queued",
        # RQ's own limit for a stock worker; ours is the deadline on the tape.
        "timeout": int(timeout_s) + 60,
        "result_ttl": int(keep_s),
        "failure_ttl": int(keep_s),
        "started_at": "",
        "ended_at": "",
        "worker_name": "",
    }
    fields = [part for pair in record.items() for part in pair]
    return ENQUEUE.call(
        (keys.queue(priority), rq_job_key(job_id), keys.open, f"{RQ}:queues", keys.bell),
        job_id,
        deadline_at_ms,
        round(timeout_s * 1000),
        *fields,
    )


def notice(keys: QueueKeys, job_id: str, priority: Priority) -> Command:
    """Tell the workers that a job was cancelled, and end its wait for a retry, if it is in one."""
    return NOTICE.call((keys.notices, keys.delayed(priority)), job_id, NOTICES_KEPT)
