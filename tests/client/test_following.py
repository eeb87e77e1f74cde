"""Followers and the hub: joined, shared, bounded, woken, woken."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokentape import (
    AsyncClient,
    BadCursor,
    Client,
    ClientClosed,
    CorruptTape,
    JobFailed,
    JobNotFound,
    Restarted,
    async_client,
    client,
    hub,
)
from tokentape.job import ErrorInfo
from tokentape.tape import Position

from .conftest import Desk, Following


@pytest.fixture
def long_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads that block for ten minutes, and no looks in between: only being woken helps."""
    monkeypatch.setattr(hub, "BLOCK_MS", 600_000)
    monkeypatch.setattr(client, "LOOK_EVERY_S", 600.0)
    monkeypatch.setattr(async_client, "LOOK_EVERY_S", 600.0)
    monkeypatch.setattr(hub, "block_ms_for", lambda _: 600_000)


@pytest.fixture
def patient(desk: Desk, long_blocks: None) -> Iterator[Desk]:
    """A desk whose client was made with those reads."""
    with redis.Redis.from_url(desk.settings.redis_url) as connection:
        original, desk.client = desk.client, Client(connection=connection, settings=desk.settings)
        yield desk
        desk.client.close()
        desk.client = original


def test_a_follower_that_joins_wakes_the_shared_read(patient: Desk) -> None:
    first_id, first = patient.job()
    second_id, second = patient.job()
    one = Following(patient, first_id)
    assert one.next().kind == "queued"

    two = Following(patient, second_id)
    assert two.next().kind == "queued"
    second.claim()
    assert two.next().id == "1-0"
    first.claim()

    assert one.next().id == "1-0"
    first.end()
    second.end()
    assert one.rest() == two.rest() == ["1-1"]


@pytest.mark.usefixtures("long_blocks")
async def test_an_asyncio_follower_that_joins_wakes_the_shared_read(desk: Desk) -> None:
    async with AsyncClient(settings=desk.settings) as following:
        (first_id, first), (second_id, second) = desk.job(), desk.job()
        one, two = following.follow(first_id), following.follow(second_id)
        assert (await anext(one)).kind == "queued"
        waiting = asyncio.ensure_future(anext(one))
        await asyncio.sleep(0)  # it reads, and joins
        assert (await anext(two)).kind == "queued"
        also_waiting = asyncio.ensure_future(anext(two))

        second.claim()
        assert (await also_waiting).id == "1-0"
        first.claim()

        assert (await waiting).id == "1-0"
        await one.aclose()
        await two.aclose()


@pytest.mark.parametrize("cursor", ["1", "1-x", "-1-0", "", None, 7])
def test_a_cursor_of_a_wrong_form_is_refused_by_the_call(desk: Desk, cursor: Any) -> None:
    job_id, _ = desk.job()

    with pytest.raises(BadCursor) as refused:
        desk.client.follow(job_id, after=cursor)

    assert refused.value.cursor == cursor


@pytest.mark.parametrize("wait_s", [None, "5", True, float("nan")])
@pytest.mark.parametrize("read", ["follow", "text", "result"])
async def test_a_wait_that_is_no_number_is_refused_by_the_call(desk: Desk, read: str, wait_s: Any) -> None:
    job_id, _ = desk.job()
    async with AsyncClient(settings=desk.settings) as waiting:
        for one in (desk.client, waiting):
            with pytest.raises(TypeError, match="wait_s must be a number of seconds"):
                await getattr(one, read)(job_id, wait_s=wait_s)


@pytest.mark.parametrize("wait_s", [float("inf"), 60])
async def test_a_wait_may_be_without_end(desk: Desk, wait_s: float) -> None:
    job_id, writer = desk.job()
    reader = Following(desk, job_id, wait_s=wait_s)
    async with AsyncClient(settings=desk.settings) as waiting:
        entries = waiting.follow(job_id, wait_s=wait_s)
        assert ((await anext(entries)).id, reader.next().id) == ("0-1", "0-1")

        writer.claim()
        writer.end()

        assert [entry.id async for entry in entries] == reader.rest() == ["1-0", "1-1"]


@pytest.mark.parametrize("read", ["follow", "text", "result", "partial", "status", "cancel"])
def test_what_is_no_job_id_is_refused_without_asking_a_server(desk: Desk, read: str) -> None:
    with Client("redis://127.0.0.1:1") as nowhere, pytest.raises(JobNotFound, match="not a job id"):
        getattr(nowhere, read)("job_17")


async def test_what_is_no_job_id_is_refused_by_the_asyncio_call(desk: Desk) -> None:
    async with AsyncClient(settings=desk.settings) as following:
        with pytest.raises(JobNotFound, match="not a job id"):
            following.follow("job_17")
        with pytest.raises(JobNotFound, match="not a job id"):
            following.text("job_17")
        with pytest.raises(BadCursor):
            following.follow(f"job_{32 * '0'}", after="1")


async def test_a_follower_that_is_closed_early_is_followed_for_no_more(desk: Desk) -> None:
    job_id, writer = desk.job()
    writer.claim()
    writer.say("a")
    async with AsyncClient(settings=desk.settings) as following:
        async with aclosing(following.text(job_id)) as pieces:
            assert await anext(pieces) == "a"
            writer.say("b")
            assert await anext(pieces) == "b"  # through the hub
            joined = bool(following._hub._board)

        assert joined
        assert not following._hub._board


def test_many_followers_share_one_blocking_read(desk: Desk, redis_client: redis.Redis) -> None:
    job_id, writer = desk.job()
    name = f"followed-{job_id}"  # of its connections: other tests' clients may still be there
    desk.client._queue.client.connection_pool.connection_kwargs["client_name"] = name
    desk.client._queue.client.connection_pool.disconnect()
    readers = [Following(desk, job_id) for _ in range(50)]
    for reader in readers:
        assert reader.next().kind == "queued"

    writer.claim()
    for reader in readers:
        assert reader.next().id == "1-0"
    named = [one for one in redis_client.client_list() if one["name"] == name]
    blocked = [one for one in named if "b" in one["flags"]]
    writer.end()

    assert all(reader.rest() == ["1-1"] for reader in readers)
    assert named
    assert len(blocked) <= 1


def test_a_slow_follower_reads_by_itself_and_misses_nothing(desk: Desk) -> None:
    job_id, writer = desk.job()
    entries = desk.client.follow(job_id)
    quick = Following(desk, job_id)
    assert next(entries).kind == "queued"
    writer.claim()
    assert next(entries).id == "1-0"  # it has joined the hub
    for _ in range(20):
        writer.say(*["word " * 20] * 20)  # far beyond its buffer of 4 KiB

    writer.end()

    ids = [entry.id for entry in entries]
    assert ids == [f"1-{n}" for n in range(1, 402)]
    assert quick.rest()[-400:] == ids[-400:]


def test_a_follower_of_a_tape_that_is_deleted_is_told(
    desk: Desk, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LOOK_EVERY_S", 0.05)
    job_id, writer = desk.job()
    reader = Following(desk, job_id)
    assert reader.next().kind == "queued"

    redis_client.delete(writer.tape.key)

    assert isinstance(reader.next(), JobNotFound)


def test_a_hole_that_comes_through_the_hub_is_corrupt(desk: Desk, redis_client: redis.Redis) -> None:
    job_id, writer = desk.job()
    reader = Following(desk, job_id)
    assert reader.next().kind == "queued"
    writer.claim()
    assert reader.next().id == "1-0"

    redis_client.xadd(writer.tape.key, {"kind": "chunk", "data": "{}"}, id="1-7")

    error = reader.next()
    assert isinstance(error, CorruptTape)
    assert error.entry_id == "1-7"


def test_text_starts_with_the_newest_attempt_and_tells_of_a_restart(desk: Desk) -> None:
    job_id, writer = desk.job()
    writer.claim()
    writer.say("a", "b")
    pieces = desk.client.text(job_id)
    assert (next(pieces), next(pieces)) == ("a", "b")

    writer.claim("worker_lost")
    writer.say("c")

    with pytest.raises(Restarted) as caught:
        next(pieces)
    assert (caught.value.attempt, caught.value.reason) == (2, "worker_lost")
    writer.end()
    assert list(desk.client.text(job_id)) == ["c"]


def test_text_that_skips_restarts_goes_on(desk: Desk) -> None:
    job_id, writer = desk.job()
    writer.claim()
    writer.say("a")
    pieces = desk.client.text(job_id, on_restart="skip")
    assert next(pieces) == "a"

    writer.claim("worker_lost")
    writer.say("b")
    writer.end()

    assert list(pieces) == ["b"]


def test_a_failed_job_raises_with_its_type_and_message(desk: Desk) -> None:
    job_id, writer = desk.job()
    writer.claim()
    writer.say("half")
    writer.end(ErrorInfo(type="upstream_error", message="it broke", retryable=True, upstream_status=502))

    with pytest.raises(JobFailed) as caught:
        desk.client.result(job_id)

    error = caught.value.error
    assert (error.type, error.message, error.retryable, error.upstream_status) == (
        "upstream_error",
        "it broke",
        True,
        502,
    )
    assert desk.client.partial(job_id).text == "half"


def test_a_result_that_was_not_stored_is_assembled_from_the_tape(desk: Desk) -> None:
    job_id, writer = desk.job()
    writer.claim()
    writer.say("put ", "together")
    writer.end()

    assert desk.client.result(job_id).text == "put together"


def test_a_client_goes_on_in_a_forked_child(desk: Desk) -> None:
    job_id, writer = desk.job()
    reader = Following(desk, job_id)
    assert reader.next().kind == "queued"  # the hub's thread runs here, and only here

    child = os.fork()
    if child == 0:
        ids = [entry.id for entry in desk.client.follow(job_id, wait_s=20)]
        os._exit(0 if ids == ["0-1", "1-0", "1-1"] else 1)
    writer.claim()
    writer.end()

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert reader.rest() == ["1-0", "1-1"]


def forked(in_child: Callable[[], object]) -> int:
    """Run something in a forked child, for half a minute at most. -> its exit code: 0 where it returned"""
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            in_child()
        except BaseException:  # noqa: BLE001  (the child must not go on with the parent's tests)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_closing_a_client_in_a_forked_child_leaves_the_parents_hub_alone(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, writer = desk.job()
    reader = Following(desk, job_id)
    assert reader.next().kind == "queued"
    writer.claim()
    assert reader.next().id == "1-0"  # the hub's thread runs here

    def close() -> None:
        monkeypatch.setattr(desk.client._hub, "_ended", None)  # not waited for
        monkeypatch.setattr(desk.client._tape, "run", None)  # nor woken
        desk.client.close()

    assert forked(close) == 0
    writer.end()
    assert reader.rest() == ["1-1"]


def test_what_a_forked_child_does_with_the_parents_readers_waits_for_no_lock_of_the_parent(desk: Desk) -> None:
    job_id, writer = desk.job()
    entries = desk.client.follow(job_id)
    assert next(entries).kind == "queued"
    writer.claim()
    assert next(entries).id == "1-0"  # it has joined the hub

    with desk.client._hub._lock:
        assert forked(entries.close) == 0
        assert forked(desk.client.close) == 0


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    attempts=st.lists(st.lists(st.text(min_size=1, max_size=3), max_size=6), min_size=1, max_size=3),
    data=st.data(),
)
def test_whatever_the_cut_what_was_had_and_what_follows_are_the_whole(
    desk: Desk, attempts: list[list[str]], data: st.DataObject
) -> None:
    job_id, writer = desk.job()
    for texts in attempts:
        writer.claim()
        if texts:
            writer.say(*(text.encode("utf-8", "replace").decode() for text in texts))
    writer.end()
    whole = [(entry.id, entry.raw) for entry in desk.client.follow(job_id)]

    cut = data.draw(st.integers(0, len(whole) - 2))
    rest = [(entry.id, entry.raw) for entry in desk.client.follow(job_id, after=whole[cut][0])]

    assert whole[: cut + 1] + rest == whole
    assert Position.parse(whole[-1][0]) > Position.parse(whole[0][0])


def test_closing_a_client_ends_its_followers(desk: Desk) -> None:
    job_id, _ = desk.job()
    reader = Following(desk, job_id)
    assert reader.next().kind == "queued"

    desk.client.close()

    assert isinstance(reader.next(), ClientClosed)


def poll(condition: Callable[[], bool]) -> None:
    while not condition():
        threading.Event().wait(0.005)


def test_the_hub_leaves_no_key_behind(desk: Desk, redis_client: redis.Redis) -> None:
    job_id, writer = desk.job()
    reader = Following(desk, job_id)
    other_id, other = desk.job()
    second = Following(desk, other_id)
    for one in (writer, other):
        one.claim()
        one.end()

    reader.rest()
    second.rest()

    desk.client.close()
    poll(lambda: not list(redis_client.scan_iter(f"{desk.settings.namespace}:wake:*")))
