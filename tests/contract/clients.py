"""The clients, readers and dashboards of the world: the product's operations, over connections that break."""

from __future__ import annotations

from typing import Any

from tests.contract.world import Lost, Pause, Violation, Waits, World
from tokentape.errors import CorruptTape, JobNotFound
from tokentape.job import ChatJob
from tokentape.operations import Ask, Steps
from tokentape.queue import rq_job_key
from tokentape.reader import Reader
from tokentape.tape import START

#: A client gives up after so many lost connections.
_CLIENT_TRIES = 4


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
