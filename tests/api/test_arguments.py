"""Requests come in whatever kind of sequence and mapping type checkers let through, and the same is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pytest

from tokentape import ChatJob, InvalidRequest
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
