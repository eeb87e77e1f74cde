"""Requests come in whatever kind of sequence and mapping type checkers let through, and the same is sent."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase, CompletionCreateParamsNonStreaming

from tokentape import ChatJob, Client, InvalidRequest
from tokentape.testing import FakeStack

pytest_plugins = ["tokentape.testing.plugin"]

HELLO: dict[str, Any] = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize("messages", [[HELLO], (HELLO,), [MappingProxyType(HELLO)]], ids=["list", "tuple", "proxy"])
def test_messages_may_be_any_sequence_of_any_mapping(
    tokentape_fake: FakeStack, messages: Sequence[Mapping[str, Any]]
) -> None:
    job = tokentape_fake.client().submit(model="m", messages=messages)

    assert tokentape_fake.request(job.id) == {"model": "m", "messages": [HELLO]}


def test_a_request_may_be_any_mapping(tokentape_fake: FakeStack) -> None:
    request = MappingProxyType({"model": "m", "messages": [HELLO]})
    client = tokentape_fake.client()

    jobs = [client.submit(request=request), *client.submit_many([request, ChatJob.create(request)])]

    assert [tokentape_fake.request(job.id) for job in jobs] == [dict(request)] * 3


def test_a_request_that_changes_later_does_not_change_the_job() -> None:
    request = {"model": "m", "messages": [HELLO]}
    job = ChatJob.create(request)

    request["model"] = "another"

    assert job.request["model"] == "m"


@pytest.mark.parametrize("messages", ["Hi", b"Hi", 7, HELLO, [], ["Hi"], [None], {HELLO["role"]}])
def test_what_are_no_messages_is_refused_and_named(tokentape_fake: FakeStack, messages: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        tokentape_fake.client().submit(model="m", messages=messages)

    assert (refused.value.field or "").startswith("messages")
    assert tokentape_fake.queued() == []


@pytest.mark.parametrize("request_", ["Hi", 7, [HELLO], [("model", "m")]])
def test_what_is_no_request_is_refused_and_named(tokentape_fake: FakeStack, request_: Any) -> None:
    with pytest.raises(InvalidRequest, match="must be an object") as refused:
        tokentape_fake.client().submit(request=request_)

    assert refused.value.field == "request"


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("timeout", "timeout_s"),
        ("timeout_ms", "timeout_s"),
        ("idempotency", "idempotency_key"),
        ("idempotencykey", "idempotency_key"),
        ("key", "idempotency_key"),
        ("job_id", "ChatJob"),
        ("prio", "priority"),
        ("priorty", "priority"),
        ("upsteam", "upstream"),
        ("tennant", "tenant"),
        ("meta", "metadata"),
        ("meta_data", "metadata"),
        ("durably", "durable"),
        ("wait_s", "result"),
    ],
)
def test_a_misspelt_option_is_refused_and_told_the_right_name(tokentape_fake: FakeStack, name: str, right: str) -> None:
    option: dict[str, Any] = {name: 3}

    with pytest.raises(InvalidRequest, match=rf"^{name}: .*\b{right}\b") as refused:
        tokentape_fake.client().submit(model="m", messages=[HELLO], **option)

    assert refused.value.field == name
    assert tokentape_fake.queued() == []


def test_no_parameter_of_the_api_is_taken_for_an_option(tokentape_fake: FakeStack) -> None:
    api = CompletionCreateParamsNonStreaming.__annotations__ | CompletionCreateParamsBase.__annotations__
    ours = set(inspect.signature(Client.submit).parameters)
    # Of other upstreams: vLLM, OpenRouter, Anthropic, Gemini, llama.cpp.
    others = {
        "top_k",
        "min_p",
        "provider",
        "route",
        "models",
        "transforms",
        "thinking",
        "cachePrompt",
        "generationConfig",
    }
    names = {*api, *others, "stream", "stream_options"} - ours
    assert len(names) > 30

    for name in names:
        parameter: dict[str, Any] = {name: None}
        job = tokentape_fake.client().submit(model="m", messages=[HELLO], **parameter)
        assert name in tokentape_fake.request(job.id)


def test_a_request_may_hold_whatever_the_names_of_the_options(tokentape_fake: FakeStack) -> None:
    request = {"model": "m", "messages": [HELLO], "metadata": {"for": "OpenAI"}, "timeout": 3, "priority": 0}

    job = tokentape_fake.client().submit(request=request, metadata={"for": "us"})

    assert tokentape_fake.request(job.id) == request
    assert job.status().metadata == {"for": "us"}
