"""Whoever waits for a job is told why nothing comes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tokentape import Client, Overview
from tokentape.embedded import EmbeddedServer
from tokentape.waiting import Waiting

from .conftest import Environment, Run, body, settings_of, unique, wait_until

NO_WORKER = "no worker is running: start one with `tokentape worker`"


@contextmanager
def waiting(client: Client, job_id: str) -> Iterator[list[str]]:
    told: list[str] = []
    with Waiting(client, job_id, told.append, patience_s=0.01):
        yield told


class Asked(Client):
    """Counts how often it is asked for the state of everything."""

    looks = 0

    def overview(self) -> Overview:
        self.looks += 1
        return super().overview()


def test_that_there_is_no_worker_is_told_once(environment: Environment, idle: Environment) -> None:
    with Asked(settings=settings_of(environment | idle)) as client:
        job = client.submit(**body("Anybody?"))

        with waiting(client, job.id) as told:
            wait_until(lambda: client.looks > 3)

    assert told == [NO_WORKER]


def test_a_wait_for_a_retry_is_told(client: Client) -> None:
    job = client.submit(**body(unique("Busy?"), fault="rate_limit", fault_times=1, retry_after=600))

    with waiting(client, job.id) as told:
        wait_until(lambda: told[-1:] == ["the job waits for a retry, or for its turn at the upstream"])
        job.cancel()


def test_a_server_that_is_away_is_told(namespace: str) -> None:
    with EmbeddedServer() as server:
        settings = {
            "TOKENTAPE_REDIS_URL": server.url,
            "TOKENTAPE_NAMESPACE": namespace,
            "TOKENTAPE_REDIS_WAIT_S": "0.05",
        }
        with Client(settings=settings_of(settings)) as client:
            job = client.submit(**body("Gone?"))
            with waiting(client, job.id) as told:
                server.kill()
                wait_until(lambda: "the server does not answer, trying again" in told)


def test_a_job_that_ended_has_nothing_to_tell(client: Client) -> None:
    job = client.submit(**body("Ended"))
    job.result()

    with Asked(settings=client.settings) as again, waiting(again, job.id) as told:
        wait_until(lambda: again.looks > 1)

    assert told == []


def test_the_command_says_it_on_stderr_and_not_with_json(
    run: Run, environment: Environment, idle: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Waiting.__init__, "__kwdefaults__", {"patience_s": 0.01})
    job_id = run("submit", "Hi", env=idle).out.strip()

    plain = run("result", job_id, "--wait", "1", env=idle)
    followed = run("follow", job_id, "--wait", "1", env=idle)
    as_json = run("result", job_id, "--wait", "1", "--json", env=idle)

    assert plain.code == followed.code == as_json.code == 4
    assert plain.err.startswith(f"note: {NO_WORKER}\n")
    assert followed.err.startswith(f"note: {NO_WORKER}\n")
    assert json.loads(as_json.err)["error"]["exit_code"] == 4
    assert os.linesep not in plain.out


def test_what_text_cannot_show_is_named(run: Run, client: Client) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    job = client.submit(request={**body("Use tools", tool_calls=2), "tools": tools})
    twice = client.submit(request={**body("Twice"), "n": 2})

    called = [run(command, job.id).err for command in ("result", "follow")]
    chosen = [run(command, twice.id).err for command in ("result", "follow")]

    assert called == ["note: not shown here: tool calls (2); tokentape result --json has them\n"] * 2
    assert chosen == ["note: not shown here: more choices (1); tokentape result --json has them\n"] * 2
