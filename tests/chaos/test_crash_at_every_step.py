"""SIGKILL just before and just after every Redis command of a job's life: another worker brings it to its right end.

How many commands there are is counted in a run without a kill; the clock of leases and sweeps moves some of them, so
the numbers name moments rather than commands, and a kill that comes after the job's end is one too. `script/test`
takes every few of them, `TOKENTAPE_TEST_CRASHES=all` takes each.
"""

from __future__ import annotations

import os
from multiprocessing.process import BaseProcess

import pytest
import redis

from tokentape import Client, TokentapeError

from .conftest import Stage, body, wait_until
from .proxy import Proxy, When

#: Commands from a worker's first to a job's acknowledgement, with room: counted by the first test below.
LIFE = 96
STEP = 1 if os.environ.get("TOKENTAPE_TEST_CRASHES") == "all" else 19
REQUEST = body("crash", chunks=6, interval_ms=2)

moments = pytest.mark.parametrize("number", range(1, LIFE + 1, STEP))
sides = pytest.mark.parametrize("when", ["before", "after"])


def test_a_life_has_no_more_commands_than_are_tried(stage: Stage, redis_client: redis.Redis) -> None:
    with Proxy(stage.stack.server.url) as proxy:
        job = stage.client.submit(**REQUEST)
        stage.worker(redis_url=proxy.url)

        job.result()
        wait_until(lambda: redis_client.hlen(f"{stage.stack.namespace}:owners") == 0)

        assert proxy.commands <= LIFE


@moments
@sides
def test_a_worker_killed_at_any_command(stage: Stage, redis_client: redis.Redis, number: int, when: When) -> None:
    with Proxy(stage.stack.server.url) as proxy:
        job = stage.client.submit(**REQUEST)
        victim: list[BaseProcess] = []
        proxy.strike(number, when, lambda: stage.kill(victim[0]))
        victim.append(stage.worker(redis_url=proxy.url))
        proxy.struck.wait(timeout=30)

        stage.worker()

        stage.check(job.id, REQUEST, redis_client)


@moments
@sides
def test_a_recovering_worker_killed_at_any_command(
    stage: Stage, redis_client: redis.Redis, number: int, when: When
) -> None:
    slow = body("crash twice", chunks=40, interval_ms=10)
    job = stage.client.submit(**slow)
    first = stage.worker()
    wait_until(lambda: stage.client.status(job.id).attempts == 1)
    stage.kill(first)
    with Proxy(stage.stack.server.url) as proxy:
        recoverer: list[BaseProcess] = []
        proxy.strike(number, when, lambda: stage.kill(recoverer[0]))
        recoverer.append(stage.worker(redis_url=proxy.url))
        proxy.struck.wait(timeout=30)

        stage.worker()

        stage.check(job.id, slow, redis_client)


def submit(client: Client) -> None:
    client.submit(**REQUEST, idempotency_key="crash")


@pytest.mark.parametrize("number", range(1, 13))
@sides
def test_a_submitting_client_killed_at_any_command(
    stage: Stage, redis_client: redis.Redis, number: int, when: When
) -> None:
    with Proxy(stage.stack.server.url) as proxy:
        submitter: list[BaseProcess] = []
        proxy.strike(number, when, lambda: stage.kill(submitter[0]))
        submitter.append(stage.caller(submit, redis_url=proxy.url))
        wait_until(lambda: proxy.struck.is_set() or not submitter[0].is_alive())

    job = stage.client.submit(**REQUEST, idempotency_key="crash")
    stage.worker()

    stage.check(job.id, REQUEST, redis_client)
    assert job.status().attempts == 1


@pytest.mark.parametrize("number", range(1, 9))
@sides
def test_a_cancelling_client_killed_at_any_command(stage: Stage, number: int, when: When) -> None:
    job = stage.client.submit(**body("cancelled", chunks=100_000, interval_ms=10))
    stage.worker()
    wait_until(lambda: stage.client.status(job.id).attempts == 1)
    with Proxy(stage.stack.server.url) as proxy:
        canceller: list[BaseProcess] = []
        proxy.strike(number, when, lambda: stage.kill(canceller[0]))
        canceller.append(stage.caller(Cancel(job.id), redis_url=proxy.url))
        wait_until(lambda: proxy.struck.is_set() or not canceller[0].is_alive())

    job.cancel()

    with pytest.raises(TokentapeError, match="cancelled"):
        job.result()
    assert [entry.kind for entry in job.follow()].count("end") == 1
    wait_until(lambda: stage.stack.simulator.active == 0)


class Cancel:
    """Cancels a job; a class, so that it can be sent to another process."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id

    def __call__(self, client: Client) -> None:
        client.cancel(self._job_id)
