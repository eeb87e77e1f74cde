"""Failovers that lose an attempt, after which another gets its number: no reader mixes the two, told of it or not."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tokentape import AsyncClient, Client, client

from .conftest import Desk, Following

#: What a reader has of the attempt that is lost.
HAD = ["0-1", "1-0", "1-1", "1-2"]


class Failover:
    """A job with an attempt under way, on a server that forgets it."""

    def __init__(self, desk: Desk, redis_client: redis.Redis) -> None:
        self.job_id, self.writer = desk.job()
        self._desk = desk
        self._client = redis_client
        self._saved: Any = redis_client.dump(self.writer.tape.key)

    def write(self, chunks: int = 2) -> None:
        self.writer.claim()
        self.writer.say(*["lost "] * chunks)

    def lose(self) -> None:
        """The server comes back without its last second."""
        self._client.restore(self.writer.tape.key, 60_000, self._saved, replace=True)

    def cut(self) -> None:
        """The connections on which hubs read break."""
        for one in self._reads():
            self._client.client_kill_filter(_id=one["id"])

    def write_again(self, chunks: int = 3) -> list[str]:
        """Another worker gets the same attempt number. -> the tape's ids"""
        again = self._desk.writer(self.job_id)
        again.claim()
        again.say(*["other "] * chunks)
        again.end()
        return ["0-1", "1-0", *(f"1-{n}" for n in range(1, chunks + 2))]

    def wait_read(self) -> None:
        """Until a hub waits at the tape."""
        while not any("b" in one["flags"] for one in self._reads()):
            threading.Event().wait(0.005)

    def _reads(self) -> list[dict[str, str]]:
        return [one for one in self._client.client_list() if one["cmd"] == "xread"]


@pytest.fixture
def failover(desk: Desk, redis_client: redis.Redis) -> Failover:
    return Failover(desk, redis_client)


def test_a_reader_starts_over(desk: Desk, failover: Failover, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LOOK_EVERY_S", 0.1)
    reader = Following(desk, failover.job_id)
    failover.write()
    assert [reader.next().id for _ in range(4)] == HAD

    failover.lose()
    failover.cut()  # the reader may be on its way to the hub, or back, and not see that

    assert reader.next().id == "0-1"
    ids = failover.write_again()
    assert reader.rest() == ids[1:]


def test_a_reader_that_was_on_its_way_to_the_hub_starts_over(desk: Desk, failover: Failover) -> None:
    failover.write()
    entries = desk.client.follow(failover.job_id)
    assert [next(entries).id for _ in range(4)] == HAD  # a page of its own; it has not joined yet

    failover.lose()
    ids = failover.write_again()

    assert [entry.id for entry in entries] == ids


async def test_an_asyncio_reader_that_was_on_its_way_to_the_hub_starts_over(desk: Desk, failover: Failover) -> None:
    failover.write()
    async with AsyncClient(settings=desk.settings) as following:
        entries = following.follow(failover.job_id)
        assert [(await anext(entries)).id for _ in range(4)] == HAD

        failover.lose()
        ids = failover.write_again()

        assert [entry.id async for entry in entries] == ids


def test_a_reader_between_two_pages_starts_over(desk: Desk, failover: Failover) -> None:
    failover.write(chunks=600)
    entries = desk.client.follow(failover.job_id)
    assert [next(entries).id for _ in range(500)][-1] == "1-498"

    failover.lose()
    ids = failover.write_again(chunks=600)

    assert [entry.id for entry in entries] == ids


def test_a_reader_whose_connection_redis_py_opened_again_unasked_starts_over(desk: Desk, failover: Failover) -> None:
    failover.write()
    with redis.Redis.from_url(desk.settings.redis_url, retry=Retry(NoBackoff(), 3)) as connection:
        desk.client = Client(connection=connection, settings=desk.settings)
        reader = Following(desk, failover.job_id)
        assert [reader.next().id for _ in range(4)] == HAD
        failover.wait_read()
        failover.writer.say("through the hub")
        assert reader.next().id == "1-3"
        failover.wait_read()

        failover.lose()
        failover.cut()
        failover.wait_read()
        ids = failover.write_again()

        assert reader.rest() == ids
        desk.client.close()
