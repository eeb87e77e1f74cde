"""A tape of a format that this version does not know is refused by whoever meets it, wherever it begins to read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import redis

from tokentape import AsyncClient, Client, CorruptTape, UnknownFormat
from tokentape.tape import FORMAT, Tape

from .conftest import Desk

KEY = "order-17"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def newer(desk: Desk, redis_client: redis.Redis) -> str:
    """A job that a later version submitted, ran and ended: a format, fields and a kind of its own."""
    job_id = desk.client.submit(**BODY, idempotency_key=KEY).id
    key = Tape(desk.settings.namespace, job_id).key
    redis_client.delete(key)
    for entry_id, kind, data in (
        ("0-1", "queued", {"format": FORMAT + 1, "models": ["m"]}),
        ("1-0", "attempt", {"workers": ["w"]}),
        ("1-1", "chunks", {"texts": ["Hel", "lo"]}),
        ("1-2", "end", {"status": "completed", "attempts": 1}),
    ):
        redis_client.xadd(key, {"kind": kind, "data": json.dumps(data)}, id=entry_id)
    return job_id


def _head(redis_client: redis.Redis, key: str) -> dict[str, Any]:
    rows: Any = redis_client.xrange(key)
    head: dict[str, Any] = json.loads(rows[0][1][b"data"])
    return head


@pytest.mark.parametrize(
    "read",
    [
        lambda client, job_id: list(client.follow(job_id)),
        lambda client, job_id: list(client.follow(job_id, "0-1")),
        lambda client, job_id: list(client.follow(job_id, "1-0")),
        lambda client, job_id: list(client.follow(job_id, "1-2")),
        lambda client, job_id: list(client.text(job_id)),
        lambda client, job_id: client.result(job_id),
        lambda client, job_id: client.partial(job_id),
        lambda client, job_id: client.status(job_id),
        lambda client, job_id: client.cancel(job_id),
        lambda client, _: client.submit(**BODY, idempotency_key=KEY),
    ],
    ids=["from the start", "after 0-1", "after 1-0", "after the end", "text", "result", "partial", "status", "cancel",
         "submit"],
)  # fmt: skip
def test_another_format_is_refused_and_left_alone(
    desk: Desk, redis_client: redis.Redis, newer: str, read: Callable[[Client, str], object]
) -> None:
    before = redis_client.xrange(Tape(desk.settings.namespace, newer).key)

    with pytest.raises(UnknownFormat, match="format 2, this version reads format 1; upgrade") as refused:
        read(desk.client, newer)

    assert (refused.value.job_id, refused.value.entry_id) == (newer, "0-1")
    assert (refused.value.format, refused.value.known) == (FORMAT + 1, FORMAT)
    assert redis_client.xrange(Tape(desk.settings.namespace, newer).key) == before


async def test_an_asyncio_client_refuses_it_as_well(desk: Desk, newer: str) -> None:
    async with AsyncClient(settings=desk.settings) as client:
        with pytest.raises(UnknownFormat):
            await client.result(newer)
        with pytest.raises(UnknownFormat):
            await anext(client.follow(newer, "1-0"))


def test_one_such_job_does_not_spoil_the_overview(desk: Desk, newer: str) -> None:
    assert desk.client.overview().queued["default"] == 1


@pytest.mark.parametrize("format_", [0, "1", None, 1.5, {"major": 1}])
def test_only_the_number_itself_is_known(desk: Desk, redis_client: redis.Redis, format_: object) -> None:
    job_id, _ = desk.job()
    key = Tape(desk.settings.namespace, job_id).key
    data = {**_head(redis_client, key), "format": format_}
    redis_client.delete(key)
    redis_client.xadd(key, {"kind": "queued", "data": json.dumps(data)}, id="0-1")

    with pytest.raises(UnknownFormat):
        desk.client.status(job_id)


@pytest.mark.parametrize("data", ["null", "[1]", '"format"', "{}", '{"model": "m"}'])
def test_a_first_entry_without_a_format_is_a_corrupt_tape(desk: Desk, redis_client: redis.Redis, data: str) -> None:
    job_id, _ = desk.job()
    key = Tape(desk.settings.namespace, job_id).key
    redis_client.delete(key)
    redis_client.xadd(key, {"kind": "queued", "data": data}, id="0-1")

    with pytest.raises(CorruptTape, match="unreadable queued data") as refused:
        desk.client.status(job_id)

    assert not isinstance(refused.value, UnknownFormat)


def test_a_field_that_this_version_does_not_know_is_passed_over(desk: Desk, redis_client: redis.Redis) -> None:
    job_id, _ = desk.job()
    key = Tape(desk.settings.namespace, job_id).key
    data = {**_head(redis_client, key), "colour": "blue"}
    redis_client.delete(key)
    redis_client.xadd(key, {"kind": "queued", "data": json.dumps(data)}, id="0-1")

    assert desk.client.status(job_id).model == "m"
