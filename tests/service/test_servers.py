"""Where tapes and queue may stand: one server, two servers, fakeredis; and who else may run the jobs."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest
import redis
from rq.job import Job as RqJob
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from tokentape import Client, JobNotFound, ResultTimeout
from tokentape.embedded import EmbeddedServer
from tokentape.job import ENTRYPOINT
from tokentape.simulator import SimulatorThread, expected_text

from .conftest import Stack, body, wait_until


@pytest.fixture
def tape_server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as server:
        yield server


def test_tapes_may_stand_on_a_server_of_their_own(
    stack: Stack, tape_server: EmbeddedServer, redis_client: redis.Redis
) -> None:
    client = stack.client(tape_url=tape_server.url)
    stack.worker(tape_url=tape_server.url)

    jobs = list(client.submit_many(body(f"apart {n}") for n in range(20)))

    assert [job.result().text for job in jobs] == [expected_text(body(f"apart {n}")) for n in range(20)]
    assert not list(redis_client.scan_iter(f"{stack.namespace}:*:tape"))
    with redis.Redis.from_url(tape_server.url) as tapes:
        assert len(list(tapes.scan_iter(f"{stack.namespace}:*:tape"))) == 20
        assert not list(tapes.scan_iter("rq:*"))


def test_a_submit_that_died_between_the_servers_is_healed_by_the_same_key(
    stack: Stack, tape_server: EmbeddedServer, redis_client: redis.Redis
) -> None:
    client = stack.client(tape_url=tape_server.url)
    job = client.submit(**body("half"), idempotency_key="k")
    for key in (f"{stack.namespace}:open", f"rq:queue:{stack.namespace}-default", f"rq:job:{job.id}"):
        redis_client.delete(key)

    again = client.submit(**body("half"), idempotency_key="k")
    stack.worker(tape_url=tape_server.url)

    assert again.id == job.id
    assert job.result().text == expected_text(body("half"))


def test_the_client_runs_on_fakeredis() -> None:
    with Client(connection=fakeredis.FakeRedis()) as client:
        job = client.submit(**body("a unit test"), idempotency_key="k")

        assert client.submit(**body("a unit test"), idempotency_key="k").id == job.id
        assert job.status().status == "queued"
        assert client.overview().queued["default"] == 1
        with pytest.raises(ResultTimeout):
            job.result(wait_s=0.05)
        assert job.cancel()
        assert [entry.kind for entry in job.follow()] == ["queued", "end"]
        with pytest.raises(JobNotFound):
            client.status("job_" + "f" * 32)


def test_the_client_takes_a_connection_that_decodes(stack: Stack) -> None:
    stack.worker()
    with redis.Redis.from_url(stack.server.url, decode_responses=True) as connection:
        client = Client(connection=connection, settings=stack.settings())

        job = client.submit(**body("decoded"))

        assert job.result().text == expected_text(body("decoded"))
        assert "".join(job.text()) == expected_text(body("decoded"))
        assert client.overview().workers
        client.close()
        assert connection.ping()


def test_rqs_own_tools_see_what_goes_on(stack: Stack, redis_client: redis.Redis) -> None:
    client = stack.client()
    names: dict[str, Any] = {"connection": redis_client, "serializer": JSONSerializer}
    name = f"{stack.namespace}-default"
    good = client.submit(**body("seen by rq", chunks=100, interval_ms=10))
    bad = client.submit(**body("fails", fault="status", status=400))
    record = RqJob.fetch(good.id, **names)
    assert (record.func_name, record.args, record.get_status()) == (ENTRYPOINT, [good.id], "queued")

    worker = stack.worker()
    started = StartedJobRegistry(name, **names)
    wait_until(lambda: started.get_job_ids() == [good.id])
    assert RqJob.fetch(good.id, **names).is_started
    assert RqJob.fetch(good.id, **names).worker_name == worker.worker.name
    info = subprocess.run(
        [sys.executable, "-m", "rq.cli", "info", "-u", stack.server.url], capture_output=True, text=True, check=True
    ).stdout
    assert name in info
    assert worker.worker.name in info
    good.result()
    wait_until(lambda: RqJob.fetch(good.id, **names).is_finished)
    wait_until(lambda: RqJob.fetch(bad.id, **names).is_failed)
    assert FinishedJobRegistry(name, **names).get_job_ids() == [good.id]
    assert FailedJobRegistry(name, **names).get_job_ids() == [bad.id]
    assert started.count == 0
    result = RqJob.fetch(bad.id, **names).latest_result()
    assert result is not None
    assert "invalid_request" in str(result.exc_string)


def test_rqs_sweeps_come_after_the_longest_deadline(stack: Stack, redis_client: redis.Redis) -> None:
    client = stack.client()
    job = client.submit(**body("for weeks", chunks=100_000, interval_ms=10), timeout_s=29 * 86_400)

    stack.worker()

    ((_, due),) = wait_until(lambda: redis_client.zrange(f"rq:wip:{stack.namespace}-default", 0, -1, withscores=True))
    assert due > job.status().deadline_at
    job.cancel()


def test_a_stock_rq_worker_can_run_our_jobs(stack: Stack, redis_client: redis.Redis) -> None:
    client = stack.client()
    jobs = [client.submit(**body(f"stock {n}")) for n in range(3)]
    bad = client.submit(**body("stock fails", fault="status", status=400))

    queues = [f"{stack.namespace}-{priority}" for priority in ("high", "default", "low")]
    subprocess.run(
        [sys.executable, "-m", "rq.cli", "worker", "--burst", "-u", stack.server.url, "-S", "json", *queues],
        env=stack.environment(), capture_output=True, check=True, timeout=60,
    )  # fmt: skip

    assert [job.result(wait_s=1).text for job in jobs] == [expected_text(body(f"stock {n}")) for n in range(3)]
    assert bad.status().status == "failed"
    names: dict[str, Any] = {"connection": redis_client, "serializer": JSONSerializer}
    assert all(RqJob.fetch(job.id, **names).is_finished for job in jobs)
    assert RqJob.fetch(bad.id, **names).is_failed
    assert redis_client.hlen(f"{stack.namespace}:owners") == 0
    assert redis_client.zcard(f"{stack.namespace}:leases") == 0


def test_a_burst_worker_stops_when_the_queues_are_empty(stack: Stack) -> None:
    client = stack.client()
    jobs = list(client.submit_many(body(f"burst {n}") for n in range(50)))

    worker = subprocess.run(
        [sys.executable, "-P", "-m", "tokentape_worker", "--burst", "--concurrency", "8"],
        env=stack.environment(), check=False, timeout=60,
    )  # fmt: skip

    assert worker.returncode == 0
    assert all(job.status().status == "completed" for job in jobs)
    assert client.overview().workers == []


def test_two_namespaces_on_one_server_do_not_meet(stack: Stack, simulator: SimulatorThread) -> None:
    with contextlib.ExitStack() as close:
        other = Stack(stack.server, simulator, f"{stack.namespace}-other", close)
        stack.worker()
        job = other.client().submit(**body("elsewhere"))

        assert stack.client().submit(**body("here")).result().choices

        assert job.status().status == "queued"
        with pytest.raises(JobNotFound):
            stack.client().status(job.id)
