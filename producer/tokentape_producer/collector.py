"""Which jobs of a batch have ended, and what they came to.

Thousands of lines are in flight, so no tape is followed. The queue side keeps its acknowledged jobs in a sorted set by
time (`:ended`): reading on from the last score seen tells in one small command what has ended, whoever's it is. Not
everything that ends is acknowledged at once (a job that was cancelled or expired from outside while it waited), and a
failover may take the set back: the last entries of all jobs in flight are looked at too, but rarely.

The set is a hint. What a job came to is read off its tape and the result beside it, and a job whose tape has no end is
in flight, whatever the set says.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

from tokentape.errors import CorruptTape
from tokentape.job import ErrorInfo, Priority
from tokentape.operations import pairs
from tokentape.queue import RQ, notice, rq_job_key
from tokentape.scripts import Command
from tokentape.tape import EndData, decode_entry, text_of

from .servers import Servers

#: Jobs that are asked about in one round trip.
_PAGE: Final = 250
#: Results that are fetched in one round trip, unless one alone is larger: bounds what is in memory.
_RESULTS_BYTES: Final = 4 * 1024 * 1024

#: How long what belongs to a completed line stays once the line is on the disk: some 10 KB for a short answer, RQ's
#: record of it included. Time enough for whoever follows the job to read its end.
AFTERLIFE_S: Final = 60.0

_CANCELLED: Final = ErrorInfo(type="cancelled", message="the batch was cancelled", retryable=False)
_OVERDUE: Final = ErrorInfo(type="expired", message="the job's deadline passed", retryable=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job came to. `end` None: its tape is gone. `result`: the chat.completion as JSON, where it completed."""

    job_id: str
    end: EndData | None
    result: bytes | None = None


class _Completed(NamedTuple):
    """A completed job whose result is still to be fetched; `size` is the result's, in bytes."""

    job_id: str
    end: EndData
    attempt: int
    size: int


class Collector:
    """Reads ends and results; remembers how far it has read in the set of ended jobs."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._keys = servers.operations.keys
        self._read_to_ms = 0

    def begin(self) -> None:
        """Nothing that was acknowledged before now is reported. Call it before the first job is submitted."""
        (now,) = self._servers.queue([("TIME",)])
        self._read_to_ms = _ms(now)

    def newly_ended(self, wanted: Container[str]) -> list[str]:
        """Those of the wanted jobs that were acknowledged since the last call."""
        found: list[str] = []
        offset = 0
        while True:
            # From the last score on, that one included: within one millisecond others may have joined it.
            span: Command = ("ZRANGEBYSCORE", self._keys.ended, self._read_to_ms, "+inf", "WITHSCORES")
            reply, now = self._servers.queue([(*span, "LIMIT", offset, _PAGE), ("TIME",)])
            # A clock that was set back, or another server after a failover: what ends now has lower scores.
            self._read_to_ms = min(self._read_to_ms, _ms(now))
            rows = [(text_of(job_id), int(float(score))) for job_id, score in pairs(reply)]
            found += (job_id for job_id, _ in rows if job_id in wanted)
            if rows and rows[-1][1] > self._read_to_ms:
                self._read_to_ms, offset = rows[-1][1], 0
            else:
                offset += len(rows)
            if len(rows) < _PAGE:
                return list(dict.fromkeys(found))

    def outcomes(self, job_ids: Sequence[str]) -> Iterator[Outcome]:
        """What the jobs came to, as it is fetched; those that have not ended are left out."""
        for start in range(0, len(job_ids), _PAGE):
            yield from self._page(job_ids[start : start + _PAGE])

    def expire_overdue(self, job_ids: Sequence[str]) -> list[str]:
        """End those whose deadline has passed, in case no worker is there to do so. -> those that have no tape"""
        retention_s = self._servers.settings.retention_s
        gone: list[str] = []
        for start in range(0, len(job_ids), _PAGE):
            page = job_ids[start : start + _PAGE]
            tapes = [self._servers.operations.tape(job_id) for job_id in page]
            replies = self._servers.tapes(
                [tape.settle("expired", _OVERDUE, retention_s, if_overdue=True) for tape in tapes]
            )
            gone += (job_id for job_id, reply in zip(page, replies, strict=True) if text_of(reply[0]) == "gone")
        return gone

    def cancel(self, job_ids: Sequence[str]) -> list[str]:
        """End those that have not ended as cancelled, as Client.cancel does. -> those that have no tape"""
        retention_s = self._servers.settings.retention_s
        gone: list[str] = []
        for start in range(0, len(job_ids), _PAGE):
            page = job_ids[start : start + _PAGE]
            tapes = [self._servers.operations.tape(job_id) for job_id in page]
            replies = self._servers.tapes([tape.settle("cancelled", _CANCELLED, retention_s) for tape in tapes])
            notices: list[Command] = []
            for job_id, reply in zip(page, replies, strict=True):
                if (verdict := text_of(reply[0])) == "gone":
                    gone.append(job_id)
                elif verdict == "ok":
                    notices.append(notice(self._keys, job_id, cast(Priority, text_of(reply[1]))))
            if notices:
                self._servers.queue(notices)
        return gone

    def workers(self) -> int:
        """How many workers hold a lease now."""
        (now,) = self._servers.queue([("TIME",)])
        (count,) = self._servers.queue([("ZCOUNT", self._keys.leases, _ms(now), "+inf")])
        return int(count)

    def let_go(self, job_ids: Sequence[str], queue_name: str) -> None:
        """Shorten the life of completed jobs whose lines are on the disk: tape, result, request, and RQ's record.

        Otherwise a million lines would stand in Redis for the whole of `retention_s`, long after they were written.
        """
        life_ms = max(1, round(1000 * min(AFTERLIFE_S, self._servers.settings.retention_s)))
        (now,) = self._servers.queue([("TIME",)])
        forgotten_at = (_ms(now) + life_ms) // 1000 + 1
        for start in range(0, len(job_ids), _PAGE):
            on_tapes: list[Command] = []
            on_queue: list[Command] = []
            for job_id in job_ids[start : start + _PAGE]:
                tape = self._servers.operations.tape(job_id)
                on_tapes += (("PEXPIRE", key, life_ms) for key in (tape.key, tape.result_key, tape.request_key))
                on_queue += (("PEXPIRE", key, life_ms) for key in (rq_job_key(job_id), f"{RQ}:results:{job_id}"))
                # RQ drops from its registry what has this time behind it; XX: only what stands there.
                on_queue.append(("ZADD", f"{RQ}:finished:{queue_name}", "XX", forgotten_at, job_id))
            self._servers.tapes(on_tapes)
            self._servers.queue(on_queue)

    def _page(self, job_ids: Sequence[str]) -> Iterator[Outcome]:
        tapes = [self._servers.operations.tape(job_id) for job_id in job_ids]
        commands: list[Command] = []
        for tape in tapes:
            commands += (tape.last(), ("STRLEN", tape.result_key))
        replies = self._servers.tapes(commands)
        completed: list[_Completed] = []
        for tape, rows, size in zip(tapes, replies[::2], replies[1::2], strict=True):
            outcome = _outcome(tape.job_id, rows, int(size))
            if isinstance(outcome, _Completed):
                completed.append(outcome)
            elif outcome is not None:
                yield outcome
        for group in _groups(completed):
            results = self._servers.tapes([self._servers.operations.tape(one.job_id).result() for one in group])
            for one, stored in zip(group, results, strict=True):
                yield self._with_result(one, stored)

    def _with_result(self, completed: _Completed, stored: bytes | str | None) -> Outcome:
        """The result that was stored, or what the chunks on the tape come to where it is gone or damaged."""
        job_id, end = completed.job_id, completed.end
        result = stored.encode() if isinstance(stored, str) else stored
        if result is not None and _is_object(result):
            return Outcome(job_id, end, result)
        try:
            completion = self._servers.drive(self._servers.operations.partial(job_id, completed.attempt))
        except CorruptTape as error:
            return _unreadable(job_id, error)
        return Outcome(job_id, end, completion.to_json())


def _outcome(job_id: str, last: Any, result_size: int) -> Outcome | _Completed | None:
    """What the last entry (rows of XREVRANGE) says; None where the job has not ended."""
    if not last:
        return Outcome(job_id, None)
    try:
        entry = decode_entry(job_id, last[0])
        end = entry.data if entry.kind == "end" else None
    except CorruptTape as error:
        return _unreadable(job_id, error)
    if not isinstance(end, EndData):
        return None
    if end.status != "completed":
        return Outcome(job_id, end)
    return _Completed(job_id, end, entry.position.attempt, result_size)


def _groups(completed: Sequence[_Completed]) -> Iterator[list[_Completed]]:
    """Those whose results are fetched together."""
    group: list[_Completed] = []
    total = 0
    for one in completed:
        if group and total + one.size > _RESULTS_BYTES:
            yield group
            group, total = [], 0
        group.append(one)
        total += one.size
    if group:
        yield group


def _is_object(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except ValueError:
        return False


def _unreadable(job_id: str, error: CorruptTape) -> Outcome:
    info = ErrorInfo(type="corrupt_tape", message=str(error), retryable=False)
    return Outcome(job_id, EndData(status="failed", error=info))


def _ms(time: Any) -> int:
    """The reply to TIME in milliseconds."""
    return int(time[0]) * 1000 + int(time[1]) // 1000
