"""A client that was closed says so, and opens nothing again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis

from tokentape import AsyncClient, Client, ClientClosed, Settings, client

from .conftest import Desk

QUESTION: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
CALLS: dict[str, Callable[[Any, str], Any]] = {
    "submit": lambda client, _: client.submit(**QUESTION),
    "submit_many": lambda client, _: client.submit_many([QUESTION]),
    "follow": lambda client, job_id: client.follow(job_id),
    "text": lambda client, job_id: client.text(job_id),
    "result": lambda client, job_id: client.result(job_id),
    "partial": lambda client, job_id: client.partial(job_id),
    "status": lambda client, job_id: client.status(job_id),
    "overview": lambda client, _: client.overview(),
    "cancel": lambda client, job_id: client.cancel(job_id),
}
GENERATORS = ("submit_many", "follow", "text")


@pytest.mark.parametrize("name", CALLS)
def test_every_call_is_refused_and_takes_no_connection(desk: Desk, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def call() -> None:
        answer = CALLS[name](desk.client, job_id)
        if name in GENERATORS:
            next(answer)

    job_id, _ = desk.job()
    desk.client.close()
    desk.client.close()
    monkeypatch.setattr(desk.client._queue.client.connection_pool, "get_connection", None)

    with pytest.raises(ClientClosed, match="closed"):
        call()


@pytest.mark.parametrize("name", CALLS)
async def test_every_asyncio_call_is_refused_and_takes_no_connection(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    async def call() -> None:
        answer = CALLS[name](closed, job_id)
        await (anext(answer) if name in GENERATORS else answer)

    job_id, _ = desk.job()
    async with AsyncClient(settings=desk.settings) as closed:
        await closed.overview()
    await closed.close()
    monkeypatch.setattr(closed._queue.client.connection_pool, "get_connection", None)

    with pytest.raises(ClientClosed, match="closed"):
        await call()


async def test_what_is_closed_is_not_entered_again(desk: Desk) -> None:
    desk.client.close()
    other = AsyncClient(settings=desk.settings)
    await other.close()

    with pytest.raises(ClientClosed), desk.client:
        pass
    with pytest.raises(ClientClosed):
        async with other:
            pass


def test_a_connection_of_the_callers_own_is_not_used_after_close_and_stays_open(desk: Desk, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as mine:
        with Client(connection=mine, settings=desk.settings) as closed:
            job = closed.submit(**QUESTION)

        with pytest.raises(ClientClosed):
            job.status()
        assert mine.ping()


def test_a_call_that_waits_for_a_server_gives_up_when_the_client_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Client(settings=Settings.load({}, redis_url="redis://127.0.0.1:1", redis_wait_s=60))
    send: Callable[..., Any] = Client._send

    def send_and_close(self: Client, *args: Any) -> Any:
        try:
            return send(self, *args)
        finally:
            self.close()

    monkeypatch.setattr(client.Client, "_send", send_and_close)

    with pytest.raises(ClientClosed):
        waiting.overview()


async def test_an_asyncio_follower_is_told_that_its_client_was_closed(desk: Desk) -> None:
    job_id, writer = desk.job()
    closing = AsyncClient(settings=desk.settings)
    entries = closing.follow(job_id)
    assert (await anext(entries)).kind == "queued"
    writer.claim()
    assert (await anext(entries)).id == "1-0"
    waiting: Awaitable[object] = asyncio.ensure_future(anext(entries))

    await closing.close()

    with pytest.raises(ClientClosed):
        await waiting
