"""What a server, or whoever else writes to it, may do without ending a worker or piling anything up."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tokentape import JobCancelled, JobExpired, RedisUnavailable, Settings, connection
from tokentape.embedded import EmbeddedServer
from tokentape.simulator import SimulatorThread, expected_text
from tokentape_worker.service import Worker
from tokentape_worker.sweep import Sweeper

from .conftest import Stack, body, wait_until


@pytest.fixture
def own_server(server_binary: Path | None) -> Iterator[EmbeddedServer]:
    """A server that a test may stall or misconfigure."""
    with EmbeddedServer(binary=server_binary) as server:
        yield server


@pytest.fixture
def own_stack(own_server: EmbeddedServer, simulator: SimulatorThread, namespace: str) -> Iterator[Stack]:
    with contextlib.ExitStack() as close:
        yield Stack(own_server, simulator, namespace, close)


@pytest.fixture
def admin(own_server: EmbeddedServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(own_server.url) as client:
        yield client


def test_a_worker_goes_on_after_its_server_refused_to_write(own_stack: Stack, admin: redis.Redis) -> None:
    client = own_stack.client()
    running = client.submit(**body("running", chunks=60, interval_ms=20))
    waiting = client.submit(**body("waiting"))
    worker = own_stack.worker(concurrency=1)
    wait_until(lambda: client.status(running.id).last_entry_id >= "1-5")

    admin.config_set("min-replicas-to-write", 1)
    wait_until(lambda: client.overview().workers[0].lease_s < 0)
    admin.config_set("min-replicas-to-write", 0)

    assert running.result().text == expected_text(body("running", chunks=60, interval_ms=20))
    assert waiting.result().text == expected_text(body("waiting"))
    assert running.status().attempts == 1
    assert worker.alive


def test_a_read_that_the_server_ends_ends_no_stream(own_stack: Stack, admin: redis.Redis) -> None:
    client = own_stack.client()
    own_stack.worker()
    request = body("stream", chunks=100, interval_ms=10)
    job = client.submit(**request)
    wait_until(lambda: client.status(job.id).last_entry_id >= "1-5")
    blocked = wait_until(lambda: [one["id"] for one in admin.client_list() if one["cmd"].startswith("xread")])

    for client_id in blocked:
        admin.execute_command("CLIENT", "UNBLOCK", client_id, "ERROR")

    assert job.result().text == expected_text(request)
    assert job.status().attempts == 1


def test_a_queue_entry_that_is_no_id_harms_nobody(stack: Stack, redis_client: redis.Redis) -> None:
    client = stack.client()
    redis_client.rpush(f"rq:queue:{stack.namespace}-default", b"\xff\xfe", b"", b"a b", b"caf\xc3\xa9")
    job = client.submit(**body("behind it"))

    stack.worker()

    assert job.result().text == expected_text(body("behind it"))
    wait_until(lambda: client.overview().running == 0)
    assert client.overview().queued["default"] == 0


def test_a_key_that_is_no_tape_holds_up_no_other_job(stack: Stack, redis_client: redis.Redis) -> None:
    client = stack.client()
    broken = client.submit(**body("broken"), timeout_s=0.2)
    key = f"{stack.namespace}:{{{broken.id[4:6]}}}:{broken.id}:tape"
    redis_client.delete(key)
    redis_client.set(key, "no tape")
    overdue = client.submit(**body("overdue", chunks=1000, interval_ms=10), timeout_s=0.3)

    stack.worker(settle_s=0.2)

    with pytest.raises(JobExpired):
        overdue.result()
    wait_until(lambda: client.overview().open == 0)


def test_a_tape_server_that_falls_silent_ends_no_worker(
    stack: Stack, own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_SILENCE_S", 0.3)
    silences: list[TimeoutError] = []
    sweep = Sweeper.sweep

    async def watched(sweeper: Sweeper, *args: Any) -> None:
        try:
            await sweep(sweeper, *args)
        except TimeoutError as error:
            silences.append(error)
            raise

    monkeypatch.setattr(Sweeper, "sweep", watched)
    client = stack.client(tape_url=own_server.url)
    stack.worker(tape_url=own_server.url, settle_s=0.2)
    client.submit(**body("before")).result()

    os.kill(own_server.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: silences)
    finally:
        os.kill(own_server.pid, signal.SIGCONT)

    assert client.submit(**body("after")).result().text == expected_text(body("after"))


def test_rqs_registries_of_ended_jobs_are_trimmed_with_the_retention(stack: Stack, redis_client: redis.Redis) -> None:
    client = stack.client(retention_s=1.0)
    stack.worker(retention_s=1.0, settle_s=0.1)

    client.submit(**body("done")).result()
    cancelled = client.submit(**body("stopped", chunks=1000, interval_ms=10))
    wait_until(lambda: client.status(cancelled.id).status == "running")
    cancelled.cancel()

    registries = [f"rq:{status}:{stack.namespace}-default" for status in ("finished", "canceled")]
    wait_until(lambda: all(redis_client.zcard(key) == 1 for key in registries))
    wait_until(lambda: not redis_client.exists(*registries))


def test_a_job_can_be_cancelled_where_memory_is_full(own_stack: Stack, admin: redis.Redis) -> None:
    client = own_stack.client()
    job = client.submit(**body("stop it"))
    admin.config_set("maxmemory", "100kb")

    assert job.cancel() is True

    with pytest.raises(JobCancelled):
        job.result()


def test_a_worker_that_meets_no_server_says_so() -> None:
    settings = Settings.load({}, redis_url="redis://127.0.0.1:1/0")

    with pytest.raises(RedisUnavailable, match="refused"):
        Worker(settings)


def test_a_job_that_waits_is_not_queued_twice_where_the_tapes_clock_is_behind(
    stack: Stack, own_server: EmbeddedServer, redis_client: redis.Redis
) -> None:
    client = stack.client(tape_url=own_server.url)
    running = client.submit(**body("holds the slot", chunks=2000, interval_ms=10))
    stack.worker(tape_url=own_server.url, concurrency=1)
    wait_until(lambda: client.status(running.id).status == "running")
    waiting = client.submit(**body("waits"))

    # By the queue's clock its time is past, by the tapes' clock it is not.
    redis_client.zadd(f"{stack.namespace}:open", {waiting.id: 1})
    wait_until(lambda: redis_client.zscore(f"{stack.namespace}:open", waiting.id) != 1)

    assert client.overview().queued["default"] == 1
    running.cancel()
    assert waiting.result().text == expected_text(body("waits"))
