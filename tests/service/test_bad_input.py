"""What bad input gets: a clear error at the earliest place that can know, and nothing lost."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
import redis
from rq.job import Job as RqJob
from rq.queue import Queue
from rq.serializers import DefaultSerializer, JSONSerializer

from tokentape import Client, CorruptTape, InvalidRequest, JobFailed, RedisUnavailable, Settings
from tokentape.answer import expected_text
from tokentape.job import MAX_REQUEST_BYTES, parse_request
from tokentape.queue import QueueKeys
from tokentape.tape import Tape
from tokentape_worker import run, service

from .conftest import Stack, body, wait_until

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, "model"),
        ({"messages": MESSAGES}, "model"),
        ({"model": "", "messages": MESSAGES}, "model"),
        ({"model": 7, "messages": MESSAGES}, "model"),
        ({"model": "m"}, "messages"),
        ({"model": "m", "messages": []}, "messages"),
        ({"model": "m", "messages": "Hi"}, "messages"),
        ({"model": "m", "messages": ["Hi"]}, "messages.0"),
        ({"model": "m", "messages": [{"content": "Hi"}]}, "messages.0"),
        ({"model": "m", "messages": [*MESSAGES, {"role": "user"}]}, "messages.1"),
        ({"model": "m", "messages": [{"role": "user", "content": 5}]}, "messages.0"),
        ({"model": "m", "messages": MESSAGES, "n": 0}, "n"),
        ({"model": "m", "messages": MESSAGES, "temperature": float("nan")}, "request"),
        ({"model": "m", "messages": MESSAGES, "user": {1, 2}}, "request"),
        ({"model": "m", "messages": [{"role": "user", "content": "\ud83d"}]}, "request"),
        ({"model": "m", "messages": [{"role": "user", "content": "x" * MAX_REQUEST_BYTES}]}, "request"),
    ],
)
def test_a_bad_request_is_refused_and_names_its_field(stack: Stack, request_: dict[str, Any], field: str) -> None:
    client = stack.client()

    with pytest.raises(InvalidRequest) as caught:
        client.submit(request=request_)

    assert caught.value.field == field
    assert client.overview().open == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '"a"', "null", b"\xff\xfe", "[" * 100_000])
def test_a_request_that_is_no_json_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(text)

    assert caught.value.field == "request"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("priority", "urgent"),
        ("upstream", "nowhere"),
        ("upstream", "https://evil.example/v1"),
        ("timeout_s", 0),
        ("timeout_s", -1),
        ("timeout_s", float("nan")),
        ("timeout_s", 1e12),
        ("metadata", {"a": 1}),
        ("metadata", {"a": "x" * 20_000}),
        ("tenant", "x" * 300),
        ("idempotency_key", ""),
    ],
)
def test_a_bad_option_is_refused_and_named(stack: Stack, option: str, value: Any) -> None:
    client = stack.client()

    with pytest.raises(InvalidRequest) as caught:
        client.submit(**body(), **{option: value})

    assert caught.value.field == option
    assert client.overview().open == 0


def test_an_upstream_that_only_the_workers_know_is_accepted(stack: Stack) -> None:
    upstreams = {
        "default": {"base_url": stack.simulator.base_url},
        "second": {"base_url": stack.simulator.base_url, "models": ["never-*"]},
    }
    stack.worker(upstreams=upstreams)
    client = stack.client()
    wait_until(lambda: client.overview().workers)

    def submitted() -> Any:
        try:
            return client.submit(**body("routed"), upstream="second")
        except InvalidRequest:  # the worker has joined, and is about to announce what it serves
            return None

    job = wait_until(submitted)

    assert job.result().choices
    assert job.status().upstream == "second"


def test_a_worker_goes_on_announcing_what_it_serves(
    stack: Stack, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_PRESENCE_S", 0.05)
    stack.worker()
    key = f"{stack.namespace}:upstreams"
    wait_until(lambda: redis_client.hexists(key, "default"))

    redis_client.delete(key)  # as its expiry does

    wait_until(lambda: redis_client.hexists(key, "default"))
    assert redis_client.ttl(key) > 0


def test_a_model_that_no_upstream_serves_fails_the_job(stack: Stack) -> None:
    stack.worker(upstreams={"default": {"base_url": stack.simulator.base_url, "models": ["only-*"]}})
    client = stack.client()

    with pytest.raises(JobFailed) as caught:
        client.submit(**body()).result()

    assert caught.value.error.type == "invalid_request"
    assert "sim-1" in caught.value.error.message
    assert not caught.value.error.retryable


@pytest.mark.parametrize(
    ("script", "type_", "retryable", "status"),
    [
        ({"fault": "html"}, "upstream_error", True, None),
        ({"fault": "empty"}, "upstream_error", True, None),
        ({"fault": "malformed"}, "upstream_error", True, None),
        ({"fault": "truncate"}, "upstream_error", True, None),
        ({"fault": "disconnect"}, "upstream_error", True, None),
        ({"fault": "disconnect_before"}, "upstream_error", True, None),
        ({"fault": "wrong_json"}, "upstream_error", True, None),
        ({"fault": "stall"}, "timeout", True, None),
        ({"fault": "stall_before"}, "timeout", True, None),
        ({"fault": "huge"}, "output_too_large", False, None),
        ({"fault": "status", "status": 500}, "upstream_error", True, 500),
        ({"fault": "status", "status": 400}, "invalid_request", False, 400),
        ({"fault": "rate_limit"}, "rate_limited", True, 429),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_an_upstream_that_answers_nonsense_fails_the_job_with_its_type(
    stack: Stack, script: dict[str, Any], type_: str, retryable: bool, status: int | None
) -> None:
    patience_s = 0.5 if type_ == "timeout" else 30.0  # no stall of a busy machine is to be taken for the upstream's
    stack.worker(max_attempts=1, first_chunk_timeout_s=patience_s, idle_timeout_s=patience_s, max_output_bytes=200_000)
    client = stack.client()

    with pytest.raises(JobFailed) as caught:
        client.submit(**body("nonsense", **script)).result()

    error = caught.value.error
    assert (error.type, error.retryable) == (type_, retryable), error
    assert status is None or error.upstream_status == status
    assert len(error.message) <= 600


def test_an_upstream_that_is_not_there_fails_the_job(stack: Stack) -> None:
    stack.worker(upstreams={"default": {"base_url": "http://127.0.0.1:9/v1", "max_attempts": 1}})
    client = stack.client()

    with pytest.raises(JobFailed) as caught:
        client.submit(**body()).result()

    assert (caught.value.error.type, caught.value.error.retryable) == ("upstream_error", True)


def test_what_fails_at_first_is_tried_again(stack: Stack) -> None:
    stack.worker()
    client = stack.client()

    job = client.submit(**body("second time lucky", fault="status", fault_times=1))

    assert job.result().choices[0].finish_reason == "stop"
    assert job.status().attempts == 1


def test_what_breaks_in_mid_stream_is_a_new_attempt(stack: Stack) -> None:
    stack.worker()
    client = stack.client()

    job = client.submit(**body("breaks once", chunks=20, fault="truncate", fault_times=1))
    completion = job.result()

    reasons = [entry.data.reason for entry in job.follow() if entry.kind == "attempt"]  # type: ignore[union-attr]
    assert job.status().attempts == 2
    assert reasons == ["submitted", "upstream_error"]
    assert completion.text == "".join(job.text())


def test_a_pickled_payload_is_refused_and_never_loaded(stack: Stack, redis_client: redis.Redis) -> None:
    client = stack.client()
    job = client.submit(**body("poisoned record"))
    payload = zlib.compress(DefaultSerializer.dumps(("os.system", None, ("true",), {})))
    redis_client.hset(f"rq:job:{job.id}", "data", payload)

    stack.worker()

    with pytest.raises(JobFailed) as caught:
        job.result()
    assert caught.value.error.type == "invalid_request"


def test_a_worker_runs_nothing_but_the_entry_point(stack: Stack, redis_client: redis.Redis) -> None:
    client = stack.client()
    job = client.submit(**body("other function"))
    payload = zlib.compress(JSONSerializer.dumps(("os.system", None, ("true",), {})))
    redis_client.hset(f"rq:job:{job.id}", "data", payload)

    stack.worker()

    with pytest.raises(JobFailed):
        job.result()
    assert stack.simulator.calls(body("other function")) == 0


def test_somebody_elses_rq_job_fails_in_rq_and_harms_nobody(stack: Stack, redis_client: redis.Redis) -> None:
    client = stack.client()
    queue = Queue(f"{stack.namespace}-default", connection=redis_client, serializer=JSONSerializer)
    foreign = queue.enqueue("os.getcwd")

    stack.worker()
    ours = client.submit(**body("beside it"))

    assert ours.result().choices
    wait_until(lambda: RqJob.fetch(foreign.id, connection=redis_client, serializer=JSONSerializer).is_failed)


def test_an_entry_that_cannot_be_read_stops_the_reader_with_its_id(stack: Stack, redis_client: redis.Redis) -> None:
    client = stack.client()
    job = client.submit(**body())
    tape = Tape(stack.namespace, job.id)
    redis_client.xadd(tape.key, {"kind": "attempt", "data": "{"}, id="1-0")

    with pytest.raises(CorruptTape) as caught:
        _ = [entry.data for entry in job.follow()]

    assert caught.value.entry_id == "1-0"


@pytest.mark.parametrize("fields", [{"kind": "poem", "data": "{}"}, {"data": "{}"}, {"kind": "chunk"}])
def test_an_entry_of_no_known_kind_is_corrupt(stack: Stack, redis_client: redis.Redis, fields: Any) -> None:
    client = stack.client()
    job = client.submit(**body())
    redis_client.xadd(Tape(stack.namespace, job.id).key, fields, id="1-0")

    with pytest.raises(CorruptTape, match="1-0"):
        list(job.follow())


def test_a_hole_in_the_tape_is_corrupt(stack: Stack, redis_client: redis.Redis) -> None:
    client = stack.client()
    job = client.submit(**body())
    redis_client.xadd(Tape(stack.namespace, job.id).key, {"kind": "chunk", "data": '{"choices":[]}'}, id="1-5")

    with pytest.raises(CorruptTape, match="does not follow 0-1"):
        list(job.follow())


def test_a_tape_of_an_unknown_format_is_refused(stack: Stack, redis_client: redis.Redis) -> None:
    client = stack.client()
    job = client.submit(**body())
    tape = Tape(stack.namespace, job.id)
    rows: Any = redis_client.xrange(tape.key)
    data = {**json.loads(rows[0][1][b"data"]), "format": 2}
    redis_client.delete(tape.key)
    redis_client.xadd(tape.key, {"kind": "queued", "data": json.dumps(data)}, id="0-1")

    with pytest.raises(CorruptTape, match="format 2"):
        list(job.follow())


def test_a_server_that_is_away_is_said_to_be() -> None:
    settings = Settings.load({}, redis_url="redis://127.0.0.1:9/0", redis_wait_s=0.2)

    with Client(settings=settings) as client, pytest.raises(RedisUnavailable):
        client.submit(**body())
    with Client(settings=settings) as client, pytest.raises(ConnectionError):
        client.status("job_" + "0" * 32)


def test_no_prompt_answer_or_key_is_logged(stack: Stack, capfd: pytest.CaptureFixture[str]) -> None:
    secret = "sk-do-not-show-0123456789"
    environment = {"OPENAI_API_KEY": secret, "TOKENTAPE_LOG_LEVEL": "debug"}
    worker = stack.worker_process(**environment)
    client = stack.client()

    completion = client.submit(**body("the very private prompt", chunks=5)).result()
    with pytest.raises(JobFailed):
        client.submit(**body("the very private prompt", fault="status", status=400)).result()
    worker.process.terminate()
    worker.wait()

    written = "".join(capfd.readouterr())
    assert "job ended" in written
    assert "private prompt" not in written
    assert completion.text not in written
    assert secret not in written


def test_a_job_of_a_newer_format_is_left_to_a_newer_worker(
    stack: Stack, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_FOR_NEWER_S", 0.2)
    client = stack.client()
    job = client.submit(**body())
    tape = Tape(stack.namespace, job.id)
    rows: Any = redis_client.xrange(tape.key)
    newer = {**json.loads(rows[0][1][b"data"]), "format": 2}
    _replace(redis_client, tape, newer)
    deliveries = QueueKeys(stack.namespace).deliveries

    stack.worker()

    # Tried, put off, tried again: nothing was written, and nothing was called.
    first = wait_until(lambda: redis_client.hget(deliveries, job.id))
    wait_until(lambda: redis_client.hget(deliveries, job.id) != first)
    assert redis_client.xlen(tape.key) == 1
    # A worker that knows the format comes, which is to say here: the format is one that this worker knows.
    _replace(redis_client, tape, {**newer, "format": 1})
    assert job.result().text == expected_text(body())
    assert job.status().attempts == 1


def test_an_overdue_job_of_a_newer_format_is_not_ended_by_a_worker_that_cannot_read_it(
    stack: Stack, redis_client: redis.Redis
) -> None:
    keys = QueueKeys(stack.namespace)
    client = stack.client()
    newer, known = client.submit(**body("newer"), timeout_s=0.001), client.submit(**body("known"), timeout_s=0.001)
    tape = Tape(stack.namespace, newer.id)
    _replace(redis_client, tape, {"format": 2, "deadlines": {}})
    # Out of the queues, so that it is the sweep that meets them.
    redis_client.delete(*keys.queues)

    stack.worker()

    wait_until(lambda: known.status().status == "expired")
    assert redis_client.xlen(tape.key) == 1
    assert redis_client.zscore(keys.open, newer.id) is not None


def _replace(redis_client: redis.Redis, tape: Tape, queued: dict[str, Any]) -> None:
    """Another first entry, with no moment at which there is no tape."""
    with redis_client.pipeline(transaction=True) as pipe:
        pipe.delete(tape.key)
        pipe.xadd(tape.key, {"kind": "queued", "data": json.dumps(queued)}, id="0-1")
        pipe.execute()
