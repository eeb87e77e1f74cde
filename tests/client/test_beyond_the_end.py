"""Cursors beyond the last entry: they wait, and whoever waited in vain is told where the tape ends."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from tokentape import AsyncClient, Client, ResultTimeout, client

from .conftest import Desk, Following

#: Of a job that ended at 1-4.
BEYOND = ["1-5", "1-99", "2-0", "2-3", "9-9"]


@pytest.fixture
def ended(desk: Desk) -> str:
    job_id, writer = desk.job()
    writer.claim()
    writer.say("a", "b", "c")
    writer.end()
    return job_id


@pytest.mark.parametrize("cursor", BEYOND)
def test_an_ended_job_says_where_its_tape_ends(desk: Desk, ended: str, cursor: str) -> None:
    with pytest.raises(ResultTimeout, match="has ended, at 1-4: nothing comes after the cursor") as over:
        next(desk.client.follow(ended, after=cursor, wait_s=0.01))

    assert over.value.end == "1-4"


@pytest.mark.parametrize("cursor", BEYOND)
async def test_an_ended_job_says_it_to_an_asyncio_reader(desk: Desk, ended: str, cursor: str) -> None:
    async with AsyncClient(settings=desk.settings) as following:
        with pytest.raises(ResultTimeout, match="has ended, at 1-4"):
            await anext(following.follow(ended, after=cursor, wait_s=0.01))


def test_the_end_itself_is_a_cursor_after_which_nothing_comes(desk: Desk, ended: str) -> None:
    assert list(desk.client.follow(ended, after="1-4")) == []


def test_a_cursor_beyond_a_job_that_goes_on_waits_until_the_tape_has_passed_it(desk: Desk) -> None:
    job_id, writer = desk.job()
    reader = Following(desk, job_id, after="1-2")

    writer.claim()
    writer.say("a", "b", "c")
    writer.end()

    assert reader.rest() == ["1-3", "1-4"]


def test_a_cursor_in_an_attempt_that_came_to_less_is_followed_by_the_next_one(desk: Desk) -> None:
    job_id, writer = desk.job()
    writer.claim()
    reader = Following(desk, job_id, after="1-99")

    writer.say("a")
    writer.claim("worker_lost")
    writer.end()

    assert reader.rest() == ["2-0", "2-1"]


class Clock:
    """Time that stands still until the reader has listened once, in vain."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(Client, "_listen", self.listen)

    def listen(self, *_: Any) -> tuple[()]:
        self.now += 600
        self.meanwhile()
        return ()

    def meanwhile(self) -> None:
        """What happens in that time."""


def test_a_reader_whose_wait_is_over_looks_once_more(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id, writer = desk.job()
    writer.claim()
    clock = Clock(monkeypatch)
    clock.meanwhile = writer.end  # type: ignore[method-assign]

    with pytest.raises(ResultTimeout, match="has ended, at 1-1"):
        next(desk.client.follow(job_id, after="1-99"))


def test_a_reader_whose_wait_is_over_is_told_so(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id, writer = desk.job()
    writer.claim()
    Clock(monkeypatch)

    with pytest.raises(ResultTimeout, match="600 s") as over:
        next(desk.client.follow(job_id, after="1-99"))

    assert over.value.end is None


def test_a_reader_that_had_read_beyond_the_end_starts_over(desk: Desk, redis_client: redis.Redis) -> None:
    job_id, writer = desk.job()
    saved: Any = redis_client.dump(writer.tape.key)
    writer.claim()
    writer.say("lost ", "lost ")
    entries = desk.client.follow(job_id)
    assert [next(entries).id for _ in range(4)] == ["0-1", "1-0", "1-1", "1-2"]

    redis_client.restore(writer.tape.key, 60_000, saved, replace=True)  # a failover
    assert desk.client.cancel(job_id)

    assert [entry.id for entry in entries] == ["0-1", "1-0"]


@pytest.mark.parametrize("read", ["text", "result"])
def test_a_tape_that_loses_what_a_call_has_just_looked_at_is_read_from_its_start(
    desk: Desk, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    job_id, writer = desk.job()
    writer.claim()
    writer.say("kept")
    saved: Any = redis_client.dump(writer.tape.key)
    first = copy.copy(writer)
    writer.claim("worker_lost")
    follow = Client._follow

    def failover_first(self: Client, *args: Any) -> Any:
        redis_client.restore(writer.tape.key, 60_000, saved, replace=True)
        first.end()
        return follow(self, *args)

    monkeypatch.setattr(Client, "_follow", failover_first)

    answer = getattr(desk.client, read)(job_id)

    assert (answer.text if read == "result" else "".join(answer)) == "kept"
