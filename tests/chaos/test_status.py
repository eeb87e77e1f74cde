"""`tokentape status` while workers die: whose lease goes, where the jobs are, and why nothing moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis
from rq import Worker as RqWorker

from tokentape import Overview
from tokentape.cli import main
from tokentape.operations import WorkerView
from tokentape.simulator import expected_text

from .conftest import Stage, body, wait_until
from .proxy import Proxy

Status = Callable[..., str]


@pytest.fixture
def status(stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Status:
    """Runs the command on the stage. -> what it printed"""
    for name, value in stage.stack.environment().items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(["status", *arguments])
        assert left.value.code == 0
        return capsys.readouterr().out

    return run


def facts(status: Status) -> Overview:
    return Overview.model_validate_json(status("--json"))


def test_a_killed_workers_lease_goes_and_its_jobs_move_to_the_other(stage: Stage, status: Status) -> None:
    requests = [body(f"status {n}", chunks=6000, interval_ms=10) for n in range(20)]
    first = stage.worker(lease_s=1.5)
    jobs = list(stage.client.submit_many(requests))
    before = wait_until(lambda: (seen := facts(status)).running == 20 and seen)

    stage.kill(first)
    holding: list[float] = []

    def ran_out() -> Overview | None:
        seen = facts(status)
        holding.append(seen.workers[0].lease_s)
        return seen if holding[-1] < 0 else None

    dead: Overview = wait_until(ran_out)
    stage.worker(concurrency=5)
    moved: Overview = wait_until(lambda: (seen := facts(status)).running == 5 and len(seen.workers) == 1 and seen)

    (victim,) = before.workers
    assert (victim.jobs, victim.lease_s > 0, before.queued["default"]) == (20, True, 0)
    assert holding == sorted(holding, reverse=True)  # nobody renews it
    assert [(worker.name, worker.jobs) for worker in dead.workers] == [(victim.name, 20)]
    assert (dead.running, dead.queued["default"]) == (20, 0)  # nobody is there to put them back
    (heir,) = moved.workers
    assert (heir.jobs, heir.lease_s > 0, heir.name != victim.name) == (5, True, True)
    assert (moved.queued["default"], moved.open) == (15, 20)
    assert moved.oldest_queued_s is not None
    for job in jobs:
        job.cancel()


def test_the_oldest_that_is_queued_grows_older_while_there_is_no_worker(stage: Stage, status: Status) -> None:
    job = stage.client.submit(**body("old"))
    stage.client.submit(**body("urgent"), priority="high")

    first: Overview = facts(status)
    later: Overview = wait_until(lambda: (seen := facts(status)).oldest_queued_s != first.oldest_queued_s and seen)

    assert first.queued == {"high": 1, "default": 1, "low": 0}
    assert (later.oldest_queued_s or 0) > (first.oldest_queued_s or 0) > 0
    stage.worker()
    job.result()
    wait_until(lambda: facts(status).oldest_queued_s is None)


def test_jobs_that_wait_without_a_slot_are_counted_apart(stage: Stage, status: Status) -> None:
    stage.worker(hold_s=0.1)
    job = stage.client.submit(**body("asked to wait", fault="rate_limit", retry_after=60))

    seen: Overview = wait_until(lambda: (seen := facts(status)).waiting == 1 and seen)

    assert (seen.running, sum(seen.queued.values()), seen.open) == (0, 0, 1)
    assert '"status":"waiting"' in status(job.id, "--json")
    assert "1 for a retry or their turn" in status()
    job.cancel()


def test_a_suspect_that_waits_to_run_alone_is_counted_apart(stage: Stage, status: Status) -> None:
    jobs = list(stage.client.submit_many(body(f"suspect {n}", chunks=6000, interval_ms=10) for n in range(2)))
    for attempt in (1, 2):
        worker = stage.worker()
        wait_until(lambda a=attempt: all(job.status().attempts == a for job in jobs))  # type: ignore[misc]
        stage.kill(worker)

    stage.worker()

    seen: Overview = wait_until(lambda: (seen := facts(status)).running == 1 and seen.suspects == 1 and seen)
    assert sum(seen.queued.values()) == 0
    assert seen.oldest_queued_s is not None
    assert "lost with their worker more than once" in status()
    for job in jobs:
        job.cancel()


def test_a_dead_worker_that_nobody_succeeds_is_told_as_the_reason(stage: Stage, status: Status) -> None:
    worker = stage.worker()
    stage.client.submit(**body("stuck", chunks=6000, interval_ms=10))
    wait_until(lambda: facts(status).running == 1)
    alive = status()

    stage.kill(worker)
    wait_until(lambda: facts(status).workers[0].lease_s < 0)

    assert "nothing runs until" not in alive
    assert "no lease holds: nothing runs until a worker is started" in status()
    assert "dead" in status()


@pytest.mark.parametrize("entry", [b"\xff\xfe", b"", b"a b", b"caf\xc3\xa9", b"another-program's-job"])
def test_a_queue_entry_that_is_no_job_does_not_blind_the_status(
    stage: Stage, status: Status, redis_client: redis.Redis, entry: bytes
) -> None:
    redis_client.lpush(f"rq:queue:{stage.stack.namespace}-default", entry)
    stage.client.submit(**body("urgent"), priority="high")

    seen = facts(status)

    assert seen.queued == {"high": 1, "default": 1, "low": 0}
    assert seen.oldest_queued_s is not None


#: Commands of a worker until it begins to serve: where these fail, it says that there is no server, and ends.
BUILT = 7


@pytest.mark.parametrize("number", range(BUILT + 1, BUILT + 14, 3))
def test_a_worker_that_met_trouble_while_it_joined_works_and_is_listed_all_the_same(
    stage: Stage, status: Status, redis_client: redis.Redis, number: int
) -> None:
    request = body("trouble", chunks=5)
    with Proxy(stage.stack.server.url) as proxy:
        proxy.strike(number, "before", lambda: None)  # the connection breaks

        stage.worker(redis_url=proxy.url)

        proxy.struck.wait(timeout=30)
        assert stage.client.submit(**request).result().text == expected_text(request)
        worker: WorkerView = wait_until(lambda: facts(status).workers)[0]
        wait_until(lambda: f"rq:worker:{worker.name}" in RqWorker.all_keys(connection=redis_client))
        wait_until(lambda: redis_client.hget(f"rq:worker:{worker.name}", "state") in (b"idle", b"busy"))
