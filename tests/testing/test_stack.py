"""The stack for applications' tests: real parts, one namespace a test."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from typing import Any

import pytest
import structlog

from tokentape import AsyncClient, Client, ConfigError, ExtraMissing, JobFailed, JobNotFound, Restarted
from tokentape.embedded import EmbeddedServer
from tokentape.testing import Stack
from tokentape.testing import stack as stack_module

pytest_plugins = ["tokentape.testing.plugin"]

QUESTION: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "The capital of France?"}]}


def test_a_job_runs_through_real_parts_and_says_what_the_script_says(tokentape_stack: Stack) -> None:
    tokentape_stack.script(text="It is Paris.")

    job = tokentape_stack.client().submit(**QUESTION)

    assert list(job.text()) == ["It", " is", " Paris."]
    assert tokentape_stack.simulator.calls(QUESTION) == 1


async def test_an_asyncio_client_reaches_it_too(tokentape_stack: Stack) -> None:
    tokentape_stack.script(text="It is Paris.")

    async with tokentape_stack.async_client() as client:
        job = await client.submit(**QUESTION)
        pieces = [piece async for piece in job.text()]

    assert "".join(pieces) == "It is Paris."


def test_a_client_of_the_application_finds_it_in_the_environment(tokentape_stack: Stack) -> None:
    with Client() as client:
        job_id = client.submit(**QUESTION).id

    assert tokentape_stack.client().result(job_id).text


async def test_an_asyncio_client_of_the_application_finds_it_as_well(tokentape_stack: Stack) -> None:
    async with AsyncClient() as client:
        job = await client.submit(**QUESTION)
        assert (await job.result()).text


def test_another_process_finds_it_by_the_environment_that_the_stack_gives(tokentape_stack: Stack) -> None:
    program = f"from tokentape import Client\nwith Client() as client: print(client.submit(**{QUESTION!r}).id)"

    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **tokentape_stack.environ},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )

    assert tokentape_stack.client().result(run.stdout.strip()).text


def test_two_stacks_on_one_server_do_not_see_each_others_jobs(tokentape_server: EmbeddedServer) -> None:
    with Stack(server=tokentape_server) as one, Stack(server=tokentape_server, worker=False) as other:
        waiting = other.client().submit(**QUESTION)

        assert one.client().submit(**QUESTION).result().text
        assert waiting.status().status == "queued"
        with pytest.raises(JobNotFound):
            one.client().status(waiting.id)
        assert one.redis_url == other.redis_url


def test_jobs_wait_until_the_worker_is_started(tokentape_server: EmbeddedServer) -> None:
    with Stack(server=tokentape_server, worker=False) as stack:
        job = stack.client().submit(**QUESTION)
        assert job.status().status == "queued"

        stack.start_worker()

        assert job.result().text


def test_a_restart_of_the_worker_is_seen_by_readers(tokentape_stack: Stack) -> None:
    tokentape_stack.script(text="one two three four five", interval_ms=20)
    job = tokentape_stack.client().submit(**QUESTION)
    pieces = job.text()
    next(pieces)

    tokentape_stack.restart_worker()

    with pytest.raises(Restarted):
        list(pieces)
    assert job.result().text == "one two three four five"
    assert job.status().attempts == 2


def test_a_fault_of_the_chat_api_is_a_failed_job(tokentape_server: EmbeddedServer) -> None:
    with Stack(server=tokentape_server, upstreams={"default": {"max_attempts": 1}}) as stack:
        stack.script(fault="status", status=500)
        job = stack.client().submit(**QUESTION)

        with pytest.raises(JobFailed) as failed:
            job.result()

    assert failed.value.error.upstream_status == 500


def test_a_proxy_of_the_environment_is_not_in_its_way(
    tokentape_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    with Stack(server=tokentape_server, upstreams={"default": {"max_attempts": 1}}) as stack:
        assert stack.client().submit(**QUESTION).result().text


def test_an_outage_of_a_server_of_its_own_is_survived() -> None:
    with Stack() as stack:
        client = stack.client()
        done = client.submit(**QUESTION)
        done.result()

        stack.server.kill()
        stack.server.restart()

        assert client.submit(**QUESTION).result().text


class TestOptions:
    @pytest.fixture
    def tokentape_options(self) -> dict[str, Any]:
        return {"upstreams": ["claude", "gpt"], "worker": False, "retention_s": 60}

    def test_the_options_of_the_fixture_are_those_of_the_stack(self, tokentape_stack: Stack) -> None:
        assert set(tokentape_stack.settings.upstreams) == {"claude", "gpt"}
        assert tokentape_stack.settings.retention_s == 60
        assert tokentape_stack.client().submit(**QUESTION, upstream="claude").status().status == "queued"


def test_a_client_without_the_settings_knows_the_upstreams_that_the_worker_announced(
    tokentape_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Stack(server=tokentape_server, upstreams=["claude"]) as stack:
        for name, value in stack.environ.items():
            monkeypatch.setenv(name, value)

        with Client() as client:
            assert client.submit(**QUESTION, upstream="claude").result().text


def test_stopping_it_leaves_no_thread_and_closes_its_clients(tokentape_server: EmbeddedServer) -> None:
    before = set(threading.enumerate())
    stack = Stack(server=tokentape_server)
    stack.start()
    client = stack.client()
    client.submit(**QUESTION).result()

    stack.stop()
    stack.stop()

    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not {name for name in left if name.startswith(("tokentape", "simulator"))}
    with pytest.raises(RuntimeError, match="not started"):
        stack.client()


def test_a_wrong_setting_leaves_nothing_behind(tokentape_server: EmbeddedServer) -> None:
    before = set(threading.enumerate())
    stack = Stack(server=tokentape_server, lease=1)

    with pytest.raises(ConfigError, match="lease"):
        stack.start()

    assert set(threading.enumerate()) <= before


def test_without_the_workers_package_it_says_what_to_install(
    tokentape_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack_module, "entry_points", lambda **_: [])

    with pytest.raises(ExtraMissing, match=r"tokentape\[testing\]"), Stack(server=tokentape_server):
        pass


def test_a_quiet_worker_prints_nothing(tokentape_stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    tokentape_stack.client().submit(**QUESTION).result()
    tokentape_stack.stop_worker()

    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("tokentape_stack")
def test_a_workers_traceback_tells_of_no_values(capsys: pytest.CaptureFixture[str]) -> None:
    prompt = f"a prompt {uuid.uuid4().hex}"

    def fail(asked: str) -> None:
        raise ValueError(len(asked))

    try:
        fail(prompt)
    except ValueError as error:
        structlog.get_logger("tokentape.worker").error("run failed", exc_info=error)

    said = capsys.readouterr().out
    assert "ValueError" in said
    assert prompt not in said
