"""What applications write, as type checkers see it: strict mypy and pyright find nothing here, and it runs.

`assert_type` says what an editor shows. Mistakes are in mistakes.py.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import aclosing, closing
from typing import Literal, TypedDict, assert_type

import redis
import redis.asyncio

from tokentape import (
    AsyncClient,
    AsyncJob,
    AttemptData,
    ChatCompletion,
    ChatCompletionChunk,
    ChatJob,
    Client,
    EndData,
    Entry,
    ErrorInfo,
    Fold,
    Job,
    JobError,
    JobFailed,
    JobView,
    Overview,
    Position,
    QueuedData,
    Restarted,
    Settings,
    TokentapeError,
    Upstream,
    Usage,
    WorkerView,
    fold,
)
from tokentape.testing import FakeStack, Script, Stack


class Message(TypedDict):
    """Messages as typed dicts, like those of the OpenAI SDK."""

    role: Literal["system", "user", "assistant"]
    content: str


HELLO: list[Message] = [{"role": "user", "content": "Hi"}]


def blocking(client: Client) -> str:
    """Submit, follow, result, status."""
    job = client.submit(
        model="m", messages=HELLO, idempotency_key="order-17", priority="high", metadata={"page": "7"}, temperature=0
    )
    assert_type(job, Job)
    assert_type(job.id, str)
    assert_type(job.text(), Generator[str, None, None])
    with closing(job.text(on_restart="skip")) as text:
        pieces = "".join(text)
    completion = job.result(wait_s=60)
    assert_type(completion, ChatCompletion)
    assert_type(completion.text, str)
    assert_type(completion.choices[0].finish_reason, str | None)
    assert_type(completion.usage, Usage | None)
    if completion.usage is not None:
        assert_type(completion.usage.total_tokens, int)
    view = client.status(job.id)
    assert_type(view, JobView)
    assert_type(view.created_at, float)
    assert_type(view.error, ErrorInfo | None)
    assert_type(client.cancel(job.id), bool)
    assert_type(client.overview(), Overview)
    assert_type(client.overview().workers, list[WorkerView])
    return pieces


def many(client: Client) -> list[str]:
    """Bodies and ChatJobs, with options for all of them."""
    body = {"model": "m", "messages": HELLO, "temperature": 0.2}
    jobs = client.submit_many([body, ChatJob.create(body, idempotency_key="line-2")], priority="low", timeout_s=60)
    assert_type(jobs, Generator[Job, None, None])
    return [job.result().text for job in jobs]


def told_by_kind(client: Client, job_id: str) -> str:
    """Entries, by what their data is."""
    whole = Fold()
    for entry in client.follow(job_id, after="0-0", wait_s=60):
        assert_type(entry, Entry)
        assert_type(entry.id, str)
        assert_type(entry.position, Position)
        assert_type(entry.kind, Literal["queued", "attempt", "chunk", "end"])
        match entry.data:
            case QueuedData() as queued:
                assert_type(queued.deadline_at_ms, int)
            case AttemptData():
                whole = Fold()
            case ChatCompletionChunk() as chunk:
                whole.add(chunk)
            case EndData() as end:
                assert_type(end.status, Literal["completed", "failed", "cancelled", "expired"])
    return whole.text()


def folded(client: Client, job_id: str) -> ChatCompletion:
    """Chunks to a completion, in one go; whatever an earlier attempt said left out."""
    entries = list(client.follow(job_id))
    last = max(entry.position.attempt for entry in entries if entry.kind == "chunk")
    return fold(
        entry.expect(ChatCompletionChunk)
        for entry in entries
        if entry.kind == "chunk" and entry.position.attempt == last
    )


def restarts(client: Client, job_id: str) -> tuple[str, list[str]]:
    """A callable that is told of each restart."""
    reasons: list[str] = []

    def clear(restarted: Restarted) -> None:
        reasons.append(restarted.reason)

    return "".join(client.text(job_id, on_restart=clear)), reasons


def errors(client: Client, job_id: str) -> str:
    """From the narrowest to the base."""
    try:
        return client.result(job_id).text
    except JobFailed as failed:
        assert_type(failed.error.upstream_status, int | None)
        return f"{failed.error.type}, {'again' if failed.error.retryable else 'in vain'}"
    except JobError as error:
        return error.error.message
    except TokentapeError as error:
        return str(error)


async def with_asyncio(client: AsyncClient) -> str:
    """The same, awaited."""
    job = await client.submit(request={"model": "m", "messages": [{"role": "user", "content": "Hi"}]})
    assert_type(job, AsyncJob)
    assert_type(job.text(), AsyncGenerator[str, None])
    async with aclosing(job.text()) as text:
        pieces = "".join([piece async for piece in text])
    async for entry in client.follow(job.id, after="1-0"):
        assert_type(entry, Entry)
    completion = await job.result()
    assert_type(completion, ChatCompletion)
    assert_type((await job.status()).attempts, int)
    return pieces if completion.text == pieces else ""


async def many_with_asyncio(client: AsyncClient) -> list[str]:
    """Requests that come one by one."""

    async def lines() -> AsyncIterator[dict[str, object]]:
        for number in range(2):
            yield {"model": "m", "messages": [{"role": "user", "content": f"line {number}"}]}

    return [(await job.result()).text async for job in client.submit_many(lines(), tenant="t")]


def clients(url: str, port: int) -> list[str]:
    """Ways to make one."""
    settings = Settings.load(redis_url=url, upstreams={"mine": {"base_url": "http://127.0.0.1:9/v1"}})
    assert_type(settings.upstreams, dict[str, Upstream])
    mine = redis.Redis(port=port)
    with Client(settings=settings) as one, Client(url) as two, Client(connection=mine) as three:
        urls = [client.settings.redis_url for client in (one, two, three)]
    mine.close()
    return urls


async def clients_with_asyncio(url: str, port: int) -> list[str]:
    """The same, for asyncio."""
    mine = redis.asyncio.Redis(port=port)
    async with AsyncClient(url) as one, AsyncClient(connection=mine) as two:
        urls = [client.settings.redis_url for client in (one, two)]
    await mine.aclose()
    return urls


def in_tests() -> str:
    """The helpers for the tests of applications."""
    with FakeStack() as fake:
        job = fake.client().submit(model="m", messages=HELLO)
        fake.answer(job.id, "Par", "is")
        said = job.result().text
    with Stack(worker=False) as stack:
        assert_type(stack.script(text=said), Script)
        assert_type(stack.environ, dict[str, str])
        assert_type(stack.client(), Client)
    return said
