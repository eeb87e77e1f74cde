"""Weather: workers die by the hundred streams, connections break each moment, the server freezes, dies, forgets."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.service.conftest import Stack
from tokentape import Job
from tokentape.embedded import EmbeddedServer
from tokentape.simulator import SimulatorThread, expected_text

from .conftest import Stage, body, wait_until
from .proxy import Proxy


@contextlib.contextmanager
def again_and_again(act: Callable[[], object], every_s: float) -> Iterator[None]:
    """Do something every so often, for as long as the block runs."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(every_s):
            with contextlib.suppress(redis.RedisError):
                act()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def submitted(stage: Stage, count: int, **script: Any) -> tuple[list[dict[str, Any]], list[Job]]:
    requests = [body(f"storm {n}", **script) for n in range(count)]
    return requests, list(stage.client.submit_many(requests))


def wait_streaming(stage: Stage, jobs: list[Job]) -> None:
    """Until each job's first attempt has text: its first chunk has none."""
    wait_until(lambda: stage.client.overview().running == len(jobs))
    for job in jobs:
        wait_until(lambda j=job: j.status().last_entry_id not in ("0-1", "1-0", "1-1"))  # type: ignore[misc]


def assert_exact(requests: list[dict[str, Any]], jobs: list[Job]) -> None:
    wrong = [
        job.id
        for job, request in zip(jobs, requests, strict=True)
        if job.result(wait_s=60).text != expected_text(request)
    ]
    assert wrong == []
    assert all([entry.kind for entry in job.follow()].count("end") == 1 for job in jobs[:: max(1, len(jobs) // 20)])


def test_a_worker_killed_with_two_hundred_streams_under_way(stage: Stage) -> None:
    requests, jobs = submitted(stage, 200, chunks=500, interval_ms=10)
    victim = stage.worker()
    wait_streaming(stage, jobs)

    stage.kill(victim)
    stage.worker()

    assert_exact(requests, jobs)
    assert {job.status().attempts for job in jobs} == {2}


def test_two_recoverers_at_once_put_back_each_job_once(stage: Stage) -> None:
    requests, jobs = submitted(stage, 40, chunks=500, interval_ms=10)
    victim = stage.worker()
    wait_streaming(stage, jobs)
    others = [stage.worker(concurrency=100) for _ in range(3)]
    wait_until(lambda: len(stage.client.overview().workers) == 4)

    stage.kill(victim)

    assert_exact(requests, jobs)
    assert {job.status().attempts for job in jobs} == {2}
    assert all(one.is_alive() for one in others)


def test_a_sleeper_writes_nothing_after_the_newer_attempt(stage: Stage) -> None:
    requests, jobs = submitted(stage, 20, chunks=100, interval_ms=10)
    sleeper = stage.worker()
    wait_streaming(stage, jobs)
    assert sleeper.pid is not None

    os.kill(sleeper.pid, signal.SIGSTOP)
    stage.worker()
    wait_until(lambda: all(job.status().attempts == 2 for job in jobs))
    os.kill(sleeper.pid, signal.SIGCONT)  # while the newer attempts stream

    assert_exact(requests, jobs)
    assert {job.status().attempts for job in jobs} == {2}


def test_connections_that_are_killed_again_and_again_lose_and_double_nothing(
    stage: Stage, redis_client: redis.Redis
) -> None:
    own = {redis_client.client_id()}

    def kill_all() -> None:
        for one in redis_client.client_list(_type="normal"):
            if int(one["id"]) not in own:
                redis_client.client_kill_filter(_id=one["id"])

    requests, jobs = submitted(stage, 50, chunks=80, interval_ms=10)
    stage.worker()
    stage.worker()

    with again_and_again(kill_all, 0.1):
        assert_exact(requests, jobs)

    assert {job.status().attempts for job in jobs} == {1}


def test_a_server_that_pauses_is_waited_for(stage: Stage, redis_client: redis.Redis) -> None:
    requests, jobs = submitted(stage, 30, chunks=80, interval_ms=10)
    stage.worker()
    stage.worker()
    wait_until(lambda: stage.client.overview().running == 30)

    redis_client.client_pause(1500)  # three leases long

    assert_exact(requests, jobs)


def test_a_network_that_stalls_and_breaks_is_waited_for(stage: Stage) -> None:
    with Proxy(stage.stack.server.url) as proxy:
        requests, jobs = submitted(stage, 30, chunks=80, interval_ms=10)
        worker = stage.worker(redis_url=proxy.url, lease_s=5.0)
        wait_until(lambda: stage.client.overview().running == 30)

        proxy.stall()
        seen = stage.client.status(jobs[0].id).last_entry_id
        wait_until(lambda: stage.stack.simulator.active == 0)  # upstream is done; nothing of it could be written
        proxy.cut()
        proxy.resume()

        assert_exact(requests, jobs)
        assert {job.status().attempts for job in jobs} == {1}
        assert seen < stage.client.status(jobs[0].id).last_entry_id
        assert worker.is_alive()


@pytest.fixture
def persistent(tmp_path: Path, server_binary: Path | None) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(data=tmp_path / "data", config={"appendfsync": "always"}, binary=server_binary) as server:
        yield server


@pytest.fixture
def durable_stage(
    persistent: EmbeddedServer, simulator: SimulatorThread, namespace: str, processes: ForkServerContext
) -> Iterator[Stage]:
    with contextlib.ExitStack() as close:
        yield Stage(Stack(persistent, simulator, namespace, close), processes, close)


def test_a_server_killed_and_restarted_loses_and_doubles_nothing(
    durable_stage: Stage, persistent: EmbeddedServer
) -> None:
    requests, jobs = submitted(durable_stage, 40, chunks=100, interval_ms=10)
    durable_stage.worker()
    durable_stage.worker()
    wait_until(lambda: durable_stage.client.overview().running == 40)

    for _ in range(2):
        persistent.kill()
        persistent.restart()
        with contextlib.suppress(redis.ConnectionError):
            durable_stage.client.overview()

    assert_exact(requests, jobs)


def test_a_replica_promoted_after_losing_the_newest_entries_goes_on(
    namespace: str, simulator: SimulatorThread, processes: ForkServerContext, server_binary: Path | None
) -> None:
    with (
        EmbeddedServer(binary=server_binary) as primary,
        EmbeddedServer(binary=server_binary) as replica,
        contextlib.ExitStack() as close,
    ):
        lead, spare = redis.Redis.from_url(primary.url), redis.Redis.from_url(replica.url)
        host, port = lead.connection_pool.connection_kwargs["host"], lead.connection_pool.connection_kwargs["port"]
        spare.replicaof(host, port)
        wait_until(lambda: spare.info("replication")["master_link_status"] == "up")
        front = Failover(primary.url)
        close.enter_context(front)
        stage = Stage(Stack(_At(front.url), simulator, namespace, close), processes, close)  # type: ignore[arg-type]
        requests, jobs = submitted(stage, 20, chunks=100, interval_ms=10)
        stage.worker(lease_s=2.0)
        stage.worker(lease_s=2.0)
        wait_until(lambda: stage.client.overview().running == 20)

        spare.replicaof("NO", "ONE")  # from here on it knows nothing of what the primary is told
        before = lead.dbsize(), stage.client.status(jobs[0].id).last_entry_id
        wait_until(lambda: stage.client.status(jobs[0].id).last_entry_id != before[1])
        front.switch(replica.url)

        assert_exact(requests, jobs)
        lead.close()
        spare.close()


class Failover(Proxy):
    """The address that clients keep while the server behind it changes."""

    def switch(self, server_url: str) -> None:
        other = Proxy(server_url)
        self._server = other._server
        other.__exit__()
        self.cut()


class _At:
    """What a Stack wants of a server: where it is."""

    def __init__(self, url: str) -> None:
        self.url = url
