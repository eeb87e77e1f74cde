"""FakeStack: what an application's unit tests see of a job when the test itself is the worker."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from typing import Any

import pytest

from tokentape import (
    AsyncClient,
    ChatCompletionChunk,
    Client,
    EndData,
    ExtraMissing,
    IdempotencyConflict,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobNotFound,
    Restarted,
    TokentapeError,
    Usage,
)
from tokentape.testing import FakeStack

pytest_plugins = ["tokentape.testing.plugin"]

COUNTS = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
QUESTION: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "The capital of France?"}]}


def test_what_was_submitted_can_be_seen(tokentape_fake: FakeStack) -> None:
    client = tokentape_fake.client()

    first = client.submit(**QUESTION, temperature=0)
    urgent = client.submit(**QUESTION, priority="high")

    assert tokentape_fake.queued() == [urgent.id, first.id]
    assert tokentape_fake.request(first.id) == {**QUESTION, "temperature": 0}


def test_an_answer_is_the_result_and_ends_the_job(tokentape_fake: FakeStack) -> None:
    job = tokentape_fake.client().submit(**QUESTION)

    tokentape_fake.answer(job.id, "Par", "is", finish_reason="length")

    completion = job.result()
    assert completion.text == "Paris"
    assert completion.choices[0].finish_reason == "length"
    assert completion.model == "m"
    assert list(job.text()) == ["Par", "is"]
    assert job.status().status == "completed"
    assert tokentape_fake.queued() == []
    overview = tokentape_fake.client().overview()
    assert (overview.open, overview.running) == (0, 0)


def test_an_application_that_reads_while_the_answer_comes(tokentape_fake: FakeStack) -> None:
    job = tokentape_fake.client().submit(**QUESTION)
    tokentape_fake.say(job.id, "Par")
    pieces = job.text()

    first = next(pieces)
    answering = threading.Thread(target=tokentape_fake.answer, args=(job.id, "is"))
    answering.start()
    rest = list(pieces)
    answering.join()

    assert (first, rest) == ("Par", ["is"])


async def test_an_asyncio_client_reads_while_the_answer_comes(tokentape_fake: FakeStack) -> None:
    async with tokentape_fake.async_client() as client:
        job = await client.submit(**QUESTION)
        begun = asyncio.Event()
        pieces: list[str] = []

        async def read() -> None:
            async for piece in job.text():
                pieces.append(piece)
                begun.set()

        reading = asyncio.create_task(read())
        tokentape_fake.say(job.id, "Par")
        await begun.wait()
        assert (await job.status()).status == "running"
        tokentape_fake.answer(job.id, "is")
        await reading

    assert pieces == ["Par", "is"]


def test_a_delta_can_be_said_in_place_of_a_text(tokentape_fake: FakeStack) -> None:
    job = tokentape_fake.client().submit(**QUESTION)
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"city"'}}

    tokentape_fake.answer(
        job.id,
        {"tool_calls": [call]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ':"Paris"}'}}]},
        finish_reason="tool_calls",
    )

    made = job.result().choices[0].message.tool_calls
    assert made is not None
    assert made[0].function is not None
    assert made[0].function.arguments == '{"city":"Paris"}'


def test_a_failure_is_raised_with_what_the_test_said(tokentape_fake: FakeStack) -> None:
    job = tokentape_fake.client().submit(**QUESTION)
    tokentape_fake.say(job.id, "Par")

    tokentape_fake.fail(job.id, "rate_limited", "slow down", retryable=True, upstream_status=429)

    with pytest.raises(JobFailed, match="slow down") as failed:
        job.result()
    assert (failed.value.error.retryable, failed.value.error.upstream_status) == (True, 429)
    assert tokentape_fake.client().partial(job.id).text == "Par"


def test_a_restart_is_raised_to_whoever_has_read(tokentape_fake: FakeStack) -> None:
    job = tokentape_fake.client().submit(**QUESTION)
    tokentape_fake.say(job.id, "Lon")
    pieces = job.text()
    next(pieces)

    tokentape_fake.restart(job.id)
    tokentape_fake.answer(job.id, "Paris")

    with pytest.raises(Restarted, match="worker_lost"):
        list(pieces)
    assert job.result().text == "Paris"


def test_a_cancelled_job_takes_nothing_more(tokentape_fake: FakeStack) -> None:
    job = tokentape_fake.client().submit(**QUESTION)
    tokentape_fake.say(job.id, "Par")

    assert job.cancel()

    with pytest.raises(TokentapeError, match="nothing more"):
        tokentape_fake.say(job.id, "is")
    with pytest.raises(TokentapeError, match="nothing more"):
        tokentape_fake.answer(job.id, "Paris")
    with pytest.raises(JobCancelled):
        job.result()


@pytest.mark.parametrize("begun", [False, True])
def test_a_job_that_is_cancelled_stands_in_no_queue(tokentape_fake: FakeStack, *, begun: bool) -> None:
    job, other = (tokentape_fake.client().submit(**QUESTION) for _ in range(2))
    if begun:
        tokentape_fake.say(job.id, "Par")

    job.cancel()

    overview = tokentape_fake.client().overview()
    assert (overview.queued["default"], overview.open, overview.running) == (1, 1, 0)
    assert tokentape_fake.queued() == [other.id]


async def test_an_asyncio_client_sees_a_cancelled_job_in_no_queue_either(tokentape_fake: FakeStack) -> None:
    async with tokentape_fake.async_client() as client:
        job = await client.submit(**QUESTION)
        await job.cancel()

        overview = await client.overview()

    assert (overview.queued["default"], overview.open) == (0, 0)


@pytest.mark.parametrize("begun", [False, True])
def test_an_expired_job_is_raised_as_one(tokentape_fake: FakeStack, *, begun: bool) -> None:
    job = tokentape_fake.client().submit(**QUESTION)
    if begun:
        tokentape_fake.say(job.id, "Par")

    tokentape_fake.expire(job.id)

    with pytest.raises(JobExpired, match="deadline"):
        job.result()
    assert job.status().status == "expired"
    assert tokentape_fake.queued() == []
    assert tokentape_fake.client().overview().open == 0
    with pytest.raises(TokentapeError, match="nothing more"):
        tokentape_fake.expire(job.id)


@pytest.mark.parametrize("usage", [COUNTS, Usage.model_validate(COUNTS)], ids=["dict", "Usage"])
def test_an_answer_says_what_it_took(tokentape_fake: FakeStack, usage: dict[str, int] | Usage) -> None:
    job = tokentape_fake.client().submit(**QUESTION)

    tokentape_fake.answer(job.id, "Paris", usage=usage)

    assert job.result().usage == job.status().usage == Usage.model_validate(COUNTS)
    ended = [entry.data for entry in job.follow()][-2:]
    assert [one.usage for one in ended if isinstance(one, ChatCompletionChunk | EndData)] == [
        Usage.model_validate(COUNTS)
    ] * 2


def test_an_answer_without_usage_has_none(tokentape_fake: FakeStack) -> None:
    job = tokentape_fake.client().submit(**QUESTION)

    tokentape_fake.answer(job.id, "Paris")

    assert (job.result().usage, job.status().usage) == (None, None)


def test_an_answer_has_as_many_choices_as_were_said(tokentape_fake: FakeStack) -> None:
    job = tokentape_fake.client().submit(**QUESTION, n=2)

    tokentape_fake.say(job.id, "Lyon", choice=1)
    tokentape_fake.answer(job.id, "Paris")

    completion = job.result()
    assert [(one.message.content, one.finish_reason) for one in completion.choices] == [
        ("Paris", "stop"),
        ("Lyon", "stop"),
    ]
    assert list(job.text(choice=1)) == ["Lyon"]


def test_idempotency_keys_are_those_of_the_real_thing(tokentape_fake: FakeStack) -> None:
    client = tokentape_fake.client()
    job = client.submit(**QUESTION, idempotency_key="order-17")

    assert client.submit(**QUESTION, idempotency_key="order-17").id == job.id
    assert tokentape_fake.queued() == [job.id]
    with pytest.raises(IdempotencyConflict):
        client.submit(model="another", messages=QUESTION["messages"], idempotency_key="order-17")


def test_a_job_that_was_never_submitted_cannot_be_answered(tokentape_fake: FakeStack) -> None:
    with pytest.raises(JobNotFound):
        tokentape_fake.answer("job_" + 32 * "0", "Paris")
    with pytest.raises(JobNotFound):
        tokentape_fake.request("job_" + 32 * "0")


def test_two_fakes_share_nothing() -> None:
    with FakeStack() as one, FakeStack() as other:
        one.client().submit(**QUESTION)

        assert other.queued() == []


@pytest.mark.filterwarnings("error")
async def test_a_client_of_ones_own_redis_is_left_open_and_complains_of_nothing(tokentape_fake: FakeStack) -> None:
    with Client(connection=tokentape_fake.redis) as client:
        client.submit(**QUESTION)
    async with tokentape_fake.async_client() as waiting:
        assert isinstance(waiting, AsyncClient)
        await waiting.overview()
    gc.collect()

    assert tokentape_fake.redis.ping()


def test_without_fakeredis_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fakeredis", None)

    with pytest.raises(ExtraMissing, match=r"tokentape\[testing\]"):
        FakeStack()
