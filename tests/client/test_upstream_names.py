"""Which names of upstreams a client takes: those that workers announce, and those that its own settings configure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tokentape import Client, InvalidRequest, Settings
from tokentape.queue import QueueKeys
from tokentape.testing import FakeStack

pytest_plugins = ["tokentape.testing.plugin"]

QUESTION: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
OPENAI = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}


def submit(fake: FakeStack, upstream: str, *announced: str, environ: Mapping[str, str], **settings: Any) -> bool:
    """Submit a job while workers announce some names. -> whether it was queued"""
    if announced:
        fake.redis.hset(QueueKeys(fake.settings.namespace).upstreams, mapping=dict.fromkeys(announced, "{}"))
    with Client(connection=fake.redis, settings=Settings.load(environ, **settings)) as client:
        try:
            client.submit(**QUESTION, upstream=upstream)
        except InvalidRequest:
            return False
    return True


def test_a_default_that_nobody_configured_is_refused_where_the_workers_have_others(tokentape_fake: FakeStack) -> None:
    assert not submit(tokentape_fake, "default", "claude", "gemini", environ={})
    assert tokentape_fake.queued() == []


def test_the_refusal_names_those_that_there_are(tokentape_fake: FakeStack) -> None:
    assert not submit(tokentape_fake, "nowhere", "claude", environ={}, upstreams={"mine": {"max_attempts": 1}})

    with pytest.raises(InvalidRequest, match=r"upstream: no upstream 'default' is configured; known: claude$"):
        tokentape_fake.client().submit(**QUESTION, upstream="default")


def test_a_default_that_a_worker_announces_is_taken(tokentape_fake: FakeStack) -> None:
    assert submit(tokentape_fake, "default", "claude", "default", environ={})


@pytest.mark.parametrize(
    ("environ", "settings"),
    [(OPENAI, {}), ({}, {"upstreams": {"default": {"max_attempts": 1}}})],
    ids=["environment", "settings"],
)
def test_a_default_that_the_client_configures_is_taken(
    tokentape_fake: FakeStack, environ: Mapping[str, str], settings: dict[str, Any]
) -> None:
    assert submit(tokentape_fake, "default", "claude", environ=environ, **settings)


def test_what_the_clients_own_settings_name_is_taken_before_a_worker_announces_it(tokentape_fake: FakeStack) -> None:
    upstreams = {"mine": {"base_url": "http://127.0.0.1:9/v1"}}

    assert submit(tokentape_fake, "mine", "claude", environ={}, upstreams=upstreams)
    assert not submit(tokentape_fake, "default", "claude", environ={}, upstreams=upstreams)


def test_without_settings_and_workers_a_job_waits_for_the_first(tokentape_fake: FakeStack) -> None:
    with Client(connection=tokentape_fake.redis, settings=Settings.load({})) as client:
        jobs = [client.submit(**QUESTION).id, client.submit(**QUESTION, upstream="default").id]

    assert tokentape_fake.queued() == jobs
