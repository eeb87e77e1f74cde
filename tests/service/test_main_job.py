"""The main job, end to end: submit, stream through a worker, read and assemble."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import redis

from tokentape import (
    AsyncClient,
    BadCursor,
    ChatCompletionChunk,
    EndData,
    IdempotencyConflict,
    InvalidRequest,
    JobCancelled,
    JobExpired,
    JobNotFound,
    ResultTimeout,
)
from tokentape.simulator import expected_completion, expected_text

from .conftest import Stack, body, wait_until


def test_a_job_is_answered_word_for_word(stack: Stack) -> None:
    client = stack.client()
    stack.worker()

    job = client.submit(**body("Hi there", chunks=30))

    assert "".join(job.text()) == expected_text(body("Hi there", chunks=30))
    completion = job.result()
    assert completion.text == expected_text(body("Hi there", chunks=30))
    assert completion.choices[0].finish_reason == "stop"


def test_the_tape_is_plain_to_any_redis_client(stack: Stack, redis_client: redis.Redis) -> None:
    client = stack.client()
    stack.worker()

    job = client.submit(**body(chunks=5))
    job.result()

    rows: Any = redis_client.xrange(f"{stack.namespace}:{{{job.id[4:6]}}}:{job.id}:tape")
    ids = [row[0].decode() for row in rows]
    kinds = [row[1][b"kind"].decode() for row in rows]
    assert ids == ["0-1", "1-0", *(f"1-{n}" for n in range(1, len(ids) - 1))]
    assert kinds == ["queued", "attempt", *["chunk"] * (len(kinds) - 3), "end"]
    assert set(rows[0][1]) == {b"kind", b"data"}


@pytest.mark.parametrize("attach", ["queued", "midway", "after"])
def test_a_reader_gets_the_whole_whenever_it_attaches(stack: Stack, attach: str) -> None:
    client = stack.client()
    request = body(f"attach {attach}", chunks=40, interval_ms=5)
    job = client.submit(**request)
    got: list[Any] = []
    reader = threading.Thread(target=lambda: got.extend(client.follow(job.id)))
    if attach == "queued":
        reader.start()

    stack.worker()
    if attach == "midway":
        wait_until(lambda: client.status(job.id).last_entry_id > "1-1")
        reader.start()
    completion = job.result()
    if attach == "after":
        reader.start()
    reader.join(timeout=30)

    assert got[0].kind == "queued"
    assert got[-1].kind == "end"
    text = "".join(e.data.choices[0].delta.content or "" for e in got if e.kind == "chunk" and e.data.choices)
    assert text == completion.text == expected_text(request)


def test_two_readers_of_one_tape_get_the_same(stack: Stack) -> None:
    client, other = stack.client(), stack.client()
    job = client.submit(**body(chunks=50, interval_ms=2))
    first: list[str] = []
    second: list[str] = []
    third: list[str] = []
    readers = [
        threading.Thread(target=lambda c=c, got=got: got.extend(e.id for e in c.follow(job.id)))
        for c, got in ((client, first), (client, second), (other, third))
    ]

    for reader in readers:
        reader.start()
    stack.worker()
    for reader in readers:
        reader.join(timeout=30)

    assert first == second == third
    assert first[:3] == ["0-1", "1-0", "1-1"]


def test_what_was_read_and_what_follows_a_resume_are_the_whole(stack: Stack) -> None:
    client = stack.client()
    stack.worker()
    job = client.submit(**body(chunks=12))
    job.result()
    whole = [entry.id for entry in job.follow()]

    for cut in range(len(whole)):
        resumed = [entry.id for entry in job.follow(after=whole[cut])] if cut < len(whole) - 1 else []

        assert whole[: cut + 1] + resumed == whole


def test_several_choices_tools_and_reasoning_are_assembled(stack: Stack) -> None:
    client = stack.client()
    stack.worker()
    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    request = {**body("all", chunks=9, reasoning_chunks=4, tool_calls=2), "n": 3, "tools": [tool]}

    completion = client.submit(request=request).result()

    expected = expected_completion(request)
    got = completion.model_dump(mode="json", exclude_unset=True)
    assert got["choices"] == expected["choices"]
    assert got["usage"]["total_tokens"] == expected["usage"]["total_tokens"]


def test_a_job_that_asks_for_no_stream_is_answered_too(stack: Stack) -> None:
    client = stack.client()
    stack.worker()
    request = {**body("whole"), "stream": False}

    completion = client.submit(request=request).result()

    assert completion.text == expected_text(request)


async def test_the_asyncio_client_has_the_same_methods(stack: Stack) -> None:
    stack.worker()
    async with AsyncClient(settings=stack.settings()) as client:
        request = body("asyncio", chunks=20)

        job = await client.submit(**request)
        text = "".join([piece async for piece in job.text()])
        entries = [entry async for entry in client.follow(job.id)]
        many = [one async for one in client.submit_many([body(f"many {n}") for n in range(5)])]
        results = [(await one.result()).text for one in many]

        assert text == expected_text(request)
        assert (await job.result()).text == text
        assert isinstance(entries[2].data, ChatCompletionChunk)
        assert isinstance(entries[-1].data, EndData)
        assert results == [expected_text(body(f"many {n}")) for n in range(5)]
        assert (await job.status()).status == "completed"
        assert await job.cancel() is False
        assert (await client.overview()).workers


def test_submit_many_takes_any_iterable_and_sends_in_batches(stack: Stack) -> None:
    client = stack.client()
    stack.worker()

    jobs = list(client.submit_many((body(f"line {n}") for n in range(600)), priority="low"))

    assert len({job.id for job in jobs}) == 600
    assert [job.result().text for job in jobs] == [expected_text(body(f"line {n}")) for n in range(600)]
    assert jobs[0].status().priority == "low"


def test_an_idempotency_key_names_one_job(stack: Stack) -> None:
    client = stack.client()
    stack.worker()

    first = client.submit(**body("once"), idempotency_key="order-7")
    second = client.submit(**body("once"), idempotency_key="order-7")
    first.result()
    third = client.submit(**body("once"), idempotency_key="order-7")

    assert first.id == second.id == third.id
    assert third.status().attempts == 1
    assert stack.simulator.calls(body("once")) == 1
    with pytest.raises(IdempotencyConflict):
        client.submit(**body("twice"), idempotency_key="order-7")
    assert client.submit(**body("twice"), idempotency_key="order-7", tenant="other").id != first.id


def test_priorities_are_run_in_their_order(stack: Stack) -> None:
    client = stack.client()
    jobs = {
        priority: client.submit(**body(f"prio {priority}"), priority=priority)
        for priority in ("low", "default", "high")
    }

    stack.worker(concurrency=1)
    for job in jobs.values():
        job.result()

    started = {priority: job.status().started_at for priority, job in jobs.items()}
    assert started["high"] <= started["default"] <= started["low"]  # type: ignore[operator]


def test_a_job_that_never_was_is_not_found_at_once(stack: Stack) -> None:
    client = stack.client()
    job_id = "job_" + "0" * 32

    for call in (
        lambda: list(client.follow(job_id)),
        lambda: list(client.text(job_id)),
        lambda: client.result(job_id),
        lambda: client.status(job_id),
        lambda: client.cancel(job_id),
    ):
        with pytest.raises(JobNotFound):
            call()


def test_a_cursor_of_a_wrong_form_is_refused(stack: Stack) -> None:
    client = stack.client()
    job = client.submit(**body())

    for cursor in ("", "1", "1-", "a-b", "-1-2", "1-2-3", "99999999-1"):
        with pytest.raises(BadCursor):
            next(iter(job.follow(after=cursor)))


def test_waiting_has_a_bound_and_leaves_the_job_alone(stack: Stack) -> None:
    client = stack.client()
    job = client.submit(**body())

    with pytest.raises(ResultTimeout) as caught:
        job.result(wait_s=0.05)
    with pytest.raises(TimeoutError):
        list(job.follow(wait_s=0.05))

    assert caught.value.job_id == job.id
    stack.worker()
    assert job.result().text == expected_text(body())


def test_a_cursor_above_the_last_entry_waits(stack: Stack) -> None:
    client = stack.client()
    stack.worker()
    job = client.submit(**body(chunks=3))
    job.result()

    with pytest.raises(ResultTimeout):
        list(job.follow(after="1-4000", wait_s=0.1))


def test_a_cancelled_job_ends_and_keeps_what_had_arrived(stack: Stack) -> None:
    client = stack.client()
    stack.worker()
    job = client.submit(**body("cancel me", chunks=1000, interval_ms=10))
    wait_until(lambda: len(client.partial(job.id).choices) > 0 and len(client.partial(job.id).text) > 40)

    assert job.cancel() is True
    assert job.cancel() is False

    with pytest.raises(JobCancelled):
        job.result()
    assert expected_text(body("cancel me", chunks=1000, interval_ms=10)).startswith(client.partial(job.id).text)
    wait_until(lambda: stack.simulator.active == 0)
    assert job.status().status == "cancelled"


def test_a_queued_job_can_be_cancelled(stack: Stack) -> None:
    client = stack.client()
    job = client.submit(**body("never run"))

    job.cancel()
    stack.worker()

    with pytest.raises(JobCancelled):
        job.result()
    wait_until(lambda: client.overview().queued["default"] == 0)
    assert stack.simulator.calls(body("never run")) == 0


def test_a_job_expires_in_the_queue(stack: Stack) -> None:
    client = stack.client()
    full = client.submit(**body("holds the slot", chunks=1000, interval_ms=10))
    stack.worker(concurrency=1)
    wait_until(lambda: client.status(full.id).status == "running")

    job = client.submit(**body("too late"), timeout_s=0.3)

    with pytest.raises(JobExpired):
        job.result()
    assert job.status().error.type == "expired"  # type: ignore[union-attr]
    full.cancel()


def test_a_job_expires_while_it_runs(stack: Stack) -> None:
    client = stack.client()
    stack.worker()

    job = client.submit(**body("slow", chunks=1000, interval_ms=20), timeout_s=0.5)

    with pytest.raises(JobExpired):
        job.result()
    wait_until(lambda: stack.simulator.active == 0)


def test_metadata_and_tenant_travel_with_the_job(stack: Stack) -> None:
    client = stack.client()

    job = client.submit(**body(), metadata={"user": "7"}, tenant="acme", priority="high")

    view = job.status()
    assert (view.status, view.metadata, view.priority, view.model) == ("queued", {"user": "7"}, "high", "sim-1")
    assert view.last_entry_id == "0-1"


def test_submit_wants_either_a_body_or_its_parts(stack: Stack) -> None:
    client = stack.client()

    with pytest.raises(InvalidRequest, match="request"):
        client.submit(request=body(), model="x")
    with pytest.raises(InvalidRequest, match="messages"):
        client.submit(model="x")


def test_many_jobs_at_once_through_one_worker_are_all_exact(stack: Stack) -> None:
    client = stack.client()
    requests = [body(f"crowd {n}", chunks=20, interval_ms=10) for n in range(500)]
    stack.worker(concurrency=500)

    jobs = list(client.submit_many(requests))

    for job, request in zip(jobs, requests, strict=True):
        assert job.result().text == expected_text(request)
    assert all(job.status().attempts == 1 for job in jobs[::50])
