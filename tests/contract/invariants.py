"""What must hold once the faults are over and everything has come to rest."""

from __future__ import annotations

import json
from typing import Any, Final

from tests.contract.bench import texts
from tests.contract.world import BUDGET, CHUNKS, NAMESPACE, Violation, World
from tokentape.errors import CorruptTape
from tokentape.job import EndStatus
from tokentape.queue import RQ, rq_job_key
from tokentape.tape import START, AttemptData, EndData, Entry, check_follows, decode_entry

#: How RQ's record calls what a tape ended with; its registry has the same name.
_RQ_STATUS: Final[dict[EndStatus, str]] = {
    "completed": "finished",
    "failed": "failed",
    "expired": "failed",
    "cancelled": "canceled",
}
#: What may rightly spend an attempt.
_SPENDS: Final = ("crash", "reaped", "break", "refuse", "lost pop", "passed over", "stumble", "roll-back")


def at_rest(world: World) -> bool:
    """Every tape has ended, and the queue side has nothing left to do."""
    keys = world.keys
    counts = [
        ("HLEN", keys.owners),
        ("ZCARD", keys.open),
        *(("ZCARD", key) for key in keys.all_delayed),
        *(("LLEN", key) for key in (*keys.queues, *keys.all_suspects)),
    ]
    return not any(world.wire.run("queue", counts)) and all(_settled(world, job_id) for job_id in world.submitted)


def has_ended(world: World, job_id: str) -> bool:
    rows = world.look("tape", *world.tape(job_id).last())
    return bool(rows) and decode_entry(job_id, rows[0]).kind == "end"


def _settled(world: World, job_id: str) -> bool:
    if has_ended(world, job_id):
        return True
    if not world.look("tape", "EXISTS", world.tape(job_id).key):
        return "tape" in world.rolled_back
    # The enqueue itself was lost with the queue's last second: no protocol can know of the job.
    return "queue" in world.rolled_back and not world.look("queue", "ZSCORE", world.keys.open, job_id)


def check(world: World) -> None:
    """Raise Violation for the first thing that is wrong."""
    for job_id in sorted(world.submitted):
        entries = _entries(world, job_id)
        if entries is not None:
            end = _check_tape(world, job_id, entries)
            _check_reader(world, job_id, entries, end)
            _check_books(world, job_id, end)
    _check_nothing_is_left(world)


def _entries(world: World, job_id: str) -> list[Entry] | None:
    rows = world.look("tape", "XRANGE", world.tape(job_id).key, "-", "+")
    if not rows and "tape" not in world.rolled_back:
        raise Violation(f"{job_id}: no tape")
    entries = [decode_entry(job_id, row) for row in rows]
    if not entries or not _settled(world, job_id):
        lost = "queue" in world.rolled_back and not world.look("queue", "ZSCORE", world.keys.open, job_id)
        if not entries or lost:
            return None
        raise Violation(f"{job_id}: never ended: {[entry.id for entry in entries]}")
    return None if entries[-1].kind != "end" else entries


def _check_tape(world: World, job_id: str, entries: list[Entry]) -> EndData:
    ids = [f"{entry.id} {entry.kind}" for entry in entries]
    if [entry.kind for entry in entries].count("end") != 1:
        raise Violation(f"{job_id}: not one end: {ids}")
    position = START
    for entry in entries:
        try:
            check_follows(position, entry)
        except CorruptTape as error:
            raise Violation(f"{job_id}: not dense: {error}; {ids}") from None
        position = entry.position
    end = entries[-1].expect(EndData)
    text = _text(world, job_id, entries)
    _check_status(world, job_id, end)
    result = world.look("tape", "GET", world.tape(job_id).result_key)
    if end.status == "completed" and (result != text or text.count(b";") != CHUNKS):
        raise Violation(f"{job_id}: completed with {text!r}, and the result is {result!r}")
    if end.status != "completed" and result is not None:
        raise Violation(f"{job_id}: {end.status}, but a result stands")
    return end


def _text(world: World, job_id: str, entries: list[Entry]) -> bytes:
    """The text of the last attempt. Every attempt's chunks are one call's, in order, by the worker that began it."""
    text: list[bytes] = []
    begun: AttemptData | None = None
    call = b""
    for entry in entries:
        if entry.kind == "attempt":
            begun, text, call = entry.expect(AttemptData), [], b""
        elif entry.kind == "chunk":
            assert begun is not None
            name, number, seq = entry.raw.rstrip(b";").split(b"/")
            made_for, worker, token = world.calls[int(number)]
            call = call or number
            if (name, call, int(seq)) != (job_id.encode(), number, entry.position.seq):
                raise Violation(f"{job_id}: {entry.id} holds {entry.raw!r}, within call {call!r}")
            if (made_for, worker, token) != (job_id, begun.worker, begun.token):
                raise Violation(f"{job_id}: {entry.id} is by {worker}, and its attempt by {begun.worker}")
            text.append(entry.raw)
    return b"".join(text)


def _check_status(world: World, job_id: str, end: EndData) -> None:
    happened = world.happened
    if end.status == "cancelled" and not happened["cancel"]:
        raise Violation(f"{job_id}: cancelled by nobody")
    if end.status == "expired" and not happened["deadline"]:
        raise Violation(f"{job_id}: expired long before its deadline")
    reaped = sum(worker.lost for worker in world.workers)
    spent = sum(happened[cause] for cause in _SPENDS) + reaped
    if end.status == "failed" and spent < BUDGET:
        raise Violation(f"{job_id}: failed, though no more went wrong than {dict(happened)}: {end.error}")


def _check_reader(world: World, job_id: str, entries: list[Entry], end: EndData) -> None:
    text = _text(world, job_id, entries)
    read = world.read.get(job_id, text)  # a reader that was done before a roll-back does not read again
    # What a failover lost of an answer that was then broken off, its readers had seen, and nothing takes it from them.
    may_have_more = "tape" in world.rolled_back and end.status != "completed"
    if read != text and not (may_have_more and read.startswith(text)):
        raise Violation(f"{job_id}: its reader has {read!r}, its tape {text!r}")


def _check_books(world: World, job_id: str, end: EndData) -> None:
    """RQ's records say what the tape says."""
    if "queue" in world.rolled_back and not world.look("queue", "EXISTS", rq_job_key(job_id)):
        return
    expected = _RQ_STATUS[end.status]
    status = texts(world.look("queue", "HGET", rq_job_key(job_id), "status"))
    queue_names = [world.keys.queue_name(priority) for priority in ("high", "default", "low")]
    registries = [
        registry
        for registry in ("finished", "failed", "canceled", "scheduled")
        for name in queue_names
        if world.look("queue", "ZSCORE", f"{RQ}:{registry}:{name}", job_id) is not None
    ]
    if (status, registries) != (expected, [expected]):
        raise Violation(f"{job_id}: the tape says {end.status}, RQ's record {status}, in its registries {registries}")
    running: list[Any] = [
        *(world.look("queue", "ZRANGE", f"{RQ}:wip:{name}", 0, -1) for name in queue_names),
        world.look("queue", "ZRANGE", f"{RQ}:executions:{job_id}", 0, -1),
        world.look("queue", "KEYS", f"{RQ}:execution:{job_id}:*"),
    ]
    if any(running):
        raise Violation(f"{job_id}: ended, and still running in RQ's books: {texts(running)}")
    if world.look("queue", "TTL", rq_job_key(job_id)) < 0:
        raise Violation(f"{job_id}: ended, and RQ's record never expires")


def _check_nothing_is_left(world: World) -> None:
    keys = world.keys
    for key in (keys.owners, keys.deliveries, keys.reasons, keys.lost):
        left = texts(world.look("queue", "HGETALL", key))
        if left:
            raise Violation(f"left in {key}: {json.dumps(left)}")
    lists = texts(world.look("queue", "KEYS", f"{NAMESPACE}:worker:*"))
    if lists:
        raise Violation(f"left in the lists of workers: {lists}")
