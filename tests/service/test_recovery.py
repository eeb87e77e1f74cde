"""Workers that die, stop, freeze, and servers that go away: every job is still answered, once."""

from __future__ import annotations

import contextlib
import signal
import threading
from pathlib import Path

import redis

from tokentape import Restarted
from tokentape.embedded import EmbeddedServer
from tokentape.simulator import SimulatorThread, expected_text

from .conftest import Stack, body, wait_until


def test_a_killed_workers_streams_run_again_and_are_exact(stack: Stack) -> None:
    client = stack.client()
    requests = [body(f"survivor {n}", chunks=400, interval_ms=10) for n in range(100)]
    jobs = list(client.submit_many(requests))
    first = stack.worker_process()
    wait_until(lambda: client.overview().running == 100)
    wait_until(lambda: client.status(jobs[-1].id).last_entry_id > "1-1")

    first.kill()
    stack.worker()

    assert [job.result().text for job in jobs] == [expected_text(request) for request in requests]
    views = [job.status() for job in jobs]
    assert {view.attempts for view in views} == {2}
    reasons = {e.data.reason for e in jobs[0].follow() if e.kind == "attempt"}  # type: ignore[union-attr]
    assert reasons == {"submitted", "worker_lost"}


def test_a_reader_is_told_that_an_attempt_starts_over(stack: Stack) -> None:
    client = stack.client()
    request = body("told", chunks=60, interval_ms=10)
    job = client.submit(**request)
    first = stack.worker_process()
    pieces = job.text()
    seen = [next(pieces)]

    first.kill()
    stack.worker()

    try:
        seen.extend(pieces)
        restarted = None
    except Restarted as error:
        restarted = error
    assert restarted is not None
    assert (restarted.attempt, restarted.reason) == (2, "worker_lost")
    assert "".join(job.text()) == expected_text(request)


def test_a_reader_may_go_on_with_the_new_attempt(stack: Stack) -> None:
    client = stack.client()
    request = body("goes on", chunks=60, interval_ms=10)
    job = client.submit(**request)
    first = stack.worker_process()
    told: list[Restarted] = []
    pieces = job.text(on_restart=told.append)
    text = next(pieces)

    first.kill()
    stack.worker()
    for piece in pieces:
        if told and text:
            text = ""
            told_once = told.pop()
            assert told_once.attempt == 2
        text += piece

    assert text == expected_text(request)


def test_a_stopped_worker_puts_back_what_it_could_not_finish(stack: Stack) -> None:
    client = stack.client()
    request = body("put back", chunks=200, interval_ms=10)
    job = client.submit(**request)
    first = stack.worker_process(TOKENTAPE_GRACE_S="0.2")
    wait_until(lambda: client.status(job.id).last_entry_id > "1-1")

    first.signal(signal.SIGTERM)

    assert first.wait() == 0
    overview = client.overview()
    assert (overview.queued["default"], overview.running, overview.workers) == (1, 0, [])
    stack.worker()
    assert job.result().text == expected_text(request)
    reasons = [e.data.reason for e in job.follow() if e.kind == "attempt"]  # type: ignore[union-attr]
    assert reasons == ["submitted", "drained"]


def test_a_stopping_worker_lets_its_streams_finish(stack: Stack) -> None:
    client = stack.client()
    running = client.submit(**body("may finish", chunks=50, interval_ms=10))
    first = stack.worker_process(TOKENTAPE_GRACE_S="30")
    wait_until(lambda: client.status(running.id).status == "running")

    first.signal(signal.SIGINT)
    assert first.wait() == 0
    waiting = client.submit(**body("comes later"))

    assert running.status().status == "completed"
    assert running.status().attempts == 1
    assert waiting.status().status == "queued"


def test_a_second_signal_puts_back_at_once(stack: Stack, redis_client: redis.Redis) -> None:
    client = stack.client()
    job = client.submit(**body("at once", chunks=100_000, interval_ms=10))
    first = stack.worker_process(TOKENTAPE_GRACE_S="600")
    wait_until(lambda: client.status(job.id).status == "running")

    name = client.overview().workers[0].name
    first.signal(signal.SIGTERM)
    # Two signals that are pending together are one: the second comes when the first was taken.
    wait_until(lambda: redis_client.hget(f"rq:worker:{name}", "shutdown_requested_date"))
    first.signal(signal.SIGTERM)

    assert first.wait() == 0
    assert client.overview().queued["default"] == 1
    job.cancel()


def test_a_frozen_worker_is_overtaken_and_writes_nothing_more(stack: Stack) -> None:
    client = stack.client()
    request = body("frozen", chunks=80, interval_ms=10)
    job = client.submit(**request)
    sleeper = stack.worker_process()
    wait_until(lambda: client.status(job.id).last_entry_id > "1-1")

    sleeper.signal(signal.SIGSTOP)
    stack.worker()
    completion = job.result()
    before = [entry.id for entry in job.follow()]
    sleeper.signal(signal.SIGCONT)
    other = [client.submit(**body(f"after the sleep {n}")) for n in range(5)]
    for one in other:
        one.result()
    wait_until(lambda: len(client.overview().workers) == 2)  # it has joined again, under a new name

    assert completion.text == expected_text(request)
    assert [entry.id for entry in job.follow()] == before
    assert before[-1].startswith("2-")


def test_workers_and_readers_survive_a_restart_of_the_server(
    namespace: str, simulator: SimulatorThread, tmp_path: Path
) -> None:
    with EmbeddedServer(data=tmp_path / "data") as server, contextlib.ExitStack() as close:
        stack = Stack(server, simulator, namespace, close)
        client = stack.client()
        request = body("through a restart", chunks=150, interval_ms=10)
        stack.worker(lease_s=5.0)
        job = client.submit(request=request, durable=True)
        ids: list[str] = []
        reader = threading.Thread(target=lambda: ids.extend(entry.id for entry in job.follow()))
        reader.start()
        wait_until(lambda: len(ids) > 10)

        server.restart()
        completion = job.result()
        reader.join(timeout=30)

        assert completion.text == expected_text(request)
        assert job.status().attempts == 1
        assert ids == ["0-1", "1-0", *(f"1-{n}" for n in range(1, len(ids) - 1))]


def test_a_job_that_kills_its_worker_each_time_ends_as_worker_lost(stack: Stack) -> None:
    client = stack.client()
    poison = client.submit(**body("poison", chunks=100_000, interval_ms=10))
    for attempt in (1, 2, 3):
        worker = stack.worker_process()
        wait_until(lambda a=attempt: client.status(poison.id).attempts == a)  # type: ignore[misc]
        worker.kill()

    stack.worker()

    view = wait_until(lambda: (v := poison.status()).status == "failed" and v)
    assert view.error.type == "worker_lost"
    assert view.attempts == 3


def test_a_job_whose_wait_is_long_gives_its_slot_back(stack: Stack) -> None:
    client = stack.client()
    stack.worker(concurrency=1, hold_s=0.1)

    waiting = client.submit(**body("asked to wait", fault="rate_limit", retry_after=1, fault_times=1))
    wait_until(lambda: waiting.status().status == "waiting")
    other = client.submit(**body("takes the slot"))

    assert other.result().choices
    assert waiting.result().choices
    reasons = [e.data.reason for e in waiting.follow() if e.kind == "attempt"]  # type: ignore[union-attr]
    assert reasons == ["submitted", "wait"]
