"""Stop a worker: no new jobs, a grace for streams, the rest to the front of its queue; without a server all the same.

Where a server is silent, the workers here would wait ten minutes for it: what ends sooner does not wait for it.
"""

from __future__ import annotations

import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from tokentape import AttemptData, Client, Job, Settings, connection
from tokentape.simulator import expected_text
from tokentape_worker.service import Worker

from .conftest import Stage, body, wait_until
from .proxy import Proxy, When

#: For workers that leave in good order: it takes as long as it takes.
UNHURRIED: Final[dict[str, Any]] = {"lease_s": 30.0, "renew_s": 0.1, "max_attempts": 1}

#: Commands of a worker until it has joined, entered RQ's list, and begun to pop.
FIRST: Final = 25
STEP: Final = 1 if os.environ.get("TOKENTAPE_TEST_CRASHES") == "all" else 5

signals = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def serve_patiently(settings: dict[str, Any]) -> None:
    """What a worker process runs that would wait long for a silent server."""
    connection._SILENCE_S = 600.0  # type: ignore[misc]
    Worker(Settings.load({}, **settings)).serve()


def patient_worker(stage: Stage, **overrides: Any) -> BaseProcess:
    return stage._start(serve_patiently, stage.settings(**overrides))


def streaming(stage: Stage, count: int, **script: Any) -> tuple[list[dict[str, Any]], list[Job]]:
    """Jobs, submitted; `wait_streaming` waits until a worker streams them."""
    requests = [body(f"stop {n}", **script) for n in range(count)]
    return requests, list(stage.client.submit_many(requests))


def wait_streaming(jobs: list[Job]) -> None:
    for job in jobs:
        wait_until(lambda j=job: j.status().last_entry_id not in ("0-1", "1-0"))  # type: ignore[misc]


def send(process: BaseProcess, number: signal.Signals) -> None:
    """Send a signal, and wait until it was taken: two that are pending together are one."""
    assert process.pid is not None
    os.kill(process.pid, number)
    wait_until(lambda: not is_pending(process, number))


def is_pending(process: BaseProcess, number: signal.Signals) -> bool:
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    masks = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(mask & 1 << (number - 1) for mask in masks)


def code_of(process: BaseProcess) -> int | None:
    """The exit code, waited for."""
    process.join(timeout=60)
    return process.exitcode


def reasons(job: Job) -> list[str]:
    return [entry.data.reason for entry in job.follow() if isinstance(entry.data, AttemptData)]


def queue_of(stage: Stage, redis_client: redis.Redis, priority: str = "default") -> list[str]:
    ids: Any = redis_client.lrange(f"rq:queue:{stage.stack.namespace}-{priority}", 0, -1)
    return [job_id.decode() for job_id in ids]


def assert_nobody_holds_anything(client: Client) -> None:
    overview = client.overview()
    assert (overview.workers, overview.running, overview.waiting, overview.suspects) == ([], 0, 0, 0)


@signals
def test_a_stopping_worker_takes_no_more_and_lets_its_streams_finish(
    stage: Stage, redis_client: redis.Redis, number: signal.Signals
) -> None:
    worker = stage.worker(**UNHURRIED, grace_s=600.0)
    requests, jobs = streaming(stage, 5, chunks=100, interval_ms=10)
    wait_streaming(jobs)
    name = stage.client.overview().workers[0].name

    send(worker, number)
    wait_until(lambda: redis_client.hget(f"rq:worker:{name}", "shutdown_requested_date"))
    later = stage.client.submit(**body("later"))

    assert code_of(worker) == 0
    assert [job.result().text for job in jobs] == [expected_text(request) for request in requests]
    assert {job.status().attempts for job in jobs} == {1}
    assert (later.status().status, later.status().attempts) == ("queued", 0)
    assert queue_of(stage, redis_client) == [later.id]
    assert_nobody_holds_anything(stage.client)


def test_what_a_stopped_worker_puts_back_stands_before_all_others_as_it_stood(
    stage: Stage, redis_client: redis.Redis
) -> None:
    worker = stage.worker(**UNHURRIED, concurrency=6, grace_s=0.0)
    _, running = streaming(stage, 5, chunks=6000, interval_ms=10)
    urgent = stage.client.submit(**body("urgent", chunks=6000, interval_ms=10), priority="high")
    wait_streaming([*running, urgent])
    _, waiting = streaming(stage, 3)

    send(worker, signal.SIGTERM)

    assert code_of(worker) == 0
    assert queue_of(stage, redis_client) == [job.id for job in (*running, *waiting)]
    assert queue_of(stage, redis_client, "high") == [urgent.id]
    assert_nobody_holds_anything(stage.client)


@signals
@pytest.mark.parametrize("times", [1, 2], ids=["the grace is over", "a second signal"])
def test_another_worker_runs_all_that_was_put_back_and_no_attempt_is_counted(
    stage: Stage, redis_client: redis.Redis, number: signal.Signals, times: int
) -> None:
    worker = stage.worker(**UNHURRIED, grace_s=0.0 if times == 1 else 600.0)
    requests, jobs = streaming(stage, 50, chunks=100, interval_ms=10)
    wait_streaming(jobs)

    for _ in range(times):
        send(worker, number)

    assert code_of(worker) == 0
    assert sorted(queue_of(stage, redis_client)) == sorted(job.id for job in jobs)
    assert_nobody_holds_anything(stage.client)
    wait_until(lambda: stage.stack.simulator.active == 0)
    stage.worker(max_attempts=1)
    assert [job.result().text for job in jobs] == [expected_text(request) for request in requests]
    assert [reasons(job) for job in jobs] == [["submitted", "drained"]] * len(jobs)


@pytest.mark.parametrize("times", [1, 2], ids=["the grace is over", "a second signal"])
@pytest.mark.parametrize("away", ["silent", "gone"])
def test_a_worker_whose_server_is_away_stops_and_others_recover(stage: Stage, times: int, away: str) -> None:
    with Proxy(stage.stack.server.url) as proxy:
        worker = patient_worker(stage, redis_url=proxy.url, grace_s=0.2 if times == 1 else 600.0)
        requests, jobs = streaming(stage, 20, chunks=100, interval_ms=10)
        wait_streaming(jobs)
        if away == "silent":
            proxy.stall()
        else:
            proxy.__exit__()

        for _ in range(times):
            send(worker, signal.SIGTERM)

        assert code_of(worker) == 0
        proxy.resume()  # what it had sent arrives late
        stage.worker()
        assert [job.result().text for job in jobs] == [expected_text(request) for request in requests]
        wait_until(lambda: len(stage.client.overview().workers) == 1)
        assert stage.client.overview().running == 0


@pytest.mark.parametrize("number", range(1, FIRST + 1, STEP))
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_worker_stopped_at_any_of_its_first_commands_leaves_nothing_stuck(
    stage: Stage, redis_client: redis.Redis, number: int, when: When
) -> None:
    request = body("before it joined", chunks=5)
    job = stage.client.submit(**request)
    with Proxy(stage.stack.server.url) as proxy:
        proxy.strike(number, when, proxy.stall)
        worker = patient_worker(stage, redis_url=proxy.url)
        proxy.struck.wait(timeout=30)

        send(worker, signal.SIGTERM)

        assert code_of(worker) in (0, -signal.SIGTERM)  # the latter where it had not begun to serve
        proxy.resume()
    stage.worker()
    stage.check(job.id, request, redis_client)
    wait_until(lambda: len(stage.client.overview().workers) == 1)
