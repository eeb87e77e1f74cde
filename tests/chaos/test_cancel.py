"""Cancel at every point of a job's life: one end that says so, upstream let go, nothing left behind, the slot free.

The scripts would run for a minute and more: where upstream is let go within a test, the cancel has done it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import pytest
import redis

from tokentape import Client, Job, JobCancelled
from tokentape.cli import main
from tokentape.simulator import expected_text
from tokentape.tape import Tape

from .conftest import Stage, body, wait_until
from .proxy import Proxy

#: A minute of answer.
LONG: Final[dict[str, Any]] = {"chunks": 6000, "interval_ms": 10}


def arrived(client: Client, job: Job) -> str:
    """What of the answer stands on the tape."""
    partial = client.partial(job.id)
    return partial.text if partial.choices else ""


def settings_of(stage: Stage, *, requests_per_minute: int = 0, **settings: Any) -> dict[str, Any]:
    """One slot, and nothing but a cancel to end a call; beside the upstream that may be limited, one that never is.

    Nor does anybody look at ended jobs again (settle_s): RQ's record must be right at once.
    """
    address = {"base_url": stage.stack.simulator.base_url, "first_chunk_timeout_s": 600, "idle_timeout_s": 600}
    upstreams = {"default": {**address, "requests_per_minute": requests_per_minute}, "free": address}
    return {"concurrency": 1, "settle_s": 600.0, "upstreams": upstreams, **settings}


def assert_nothing_is_left(stage: Stage, job: Job, redis_client: redis.Redis) -> None:
    """RQ's books say that it was cancelled and nothing else; nobody owns it, nothing waits for it."""
    namespace = stage.stack.namespace
    queue = f"{namespace}-default"
    wait_until(lambda: redis_client.hget(f"rq:job:{job.id}", "status") == b"canceled")
    wait_until(lambda: redis_client.hlen(f"{namespace}:owners") == 0)
    assert redis_client.zscore(f"rq:canceled:{queue}", job.id) is not None
    for registry in ("failed", "finished", "scheduled"):
        assert redis_client.zscore(f"rq:{registry}:{queue}", job.id) is None, registry
    assert redis_client.zcard(f"rq:wip:{queue}") == 0
    assert redis_client.llen(f"rq:queue:{queue}") == 0
    assert redis_client.zcard(f"{namespace}:delayed:default") == 0
    assert not list(redis_client.scan_iter(f"{namespace}:worker:*"))
    assert not list(redis_client.scan_iter(f"rq:execution*:{job.id}*"))


def assert_cancelled(stage: Stage, job: Job, request: dict[str, Any], before: str) -> None:
    """The one end of its tape says so to everybody, and what had arrived stays readable."""
    client = stage.client
    with pytest.raises(JobCancelled):
        job.result()
    entries = list(job.follow())  # raises CorruptTape where it is not dense
    assert [entry.kind for entry in entries].count("end") == 1
    assert entries[-1].kind == "end"
    view = job.status()
    assert (view.status, view.error and view.error.type) == ("cancelled", "cancelled")
    after = arrived(client, job)
    assert after.startswith(before)
    assert expected_text(request).startswith(after)


def assert_slot_is_free(stage: Stage, name: str) -> None:
    """The one slot runs another job."""
    request = body(f"after {name}", chunks=5)

    assert stage.client.submit(**request, upstream="free").result(wait_s=60).text == expected_text(request)


class Moment(NamedTuple):
    """When to cancel: what upstream does, what else the worker is told, and what shows that the moment has come."""

    script: dict[str, Any]
    settings: dict[str, Any]
    reached: Callable[[Stage, Job, dict[str, Any]], bool]


def refused(stage: Stage, job: Job, request: dict[str, Any]) -> bool:
    """Upstream has been asked once and has answered; the job has kept its slot."""
    simulator = stage.stack.simulator
    return simulator.calls(request) == 1 and simulator.active == 0 and job.status().status == "running"


def waiting(stage: Stage, job: Job, _request: dict[str, Any]) -> bool:
    return job.status().status == "waiting"


def called(stage: Stage, job: Job, _request: dict[str, Any]) -> bool:
    return stage.stack.simulator.active == 1 and job.status().last_entry_id == "1-0"


def flowing(stage: Stage, job: Job, _request: dict[str, Any]) -> bool:
    return len(arrived(stage.client, job)) > 100


def silent(stage: Stage, job: Job, _request: dict[str, Any]) -> bool:
    """All five chunks that come have come."""
    return stage.stack.simulator.active == 1 and job.status().last_entry_id == "1-5"


ASKED_TO_WAIT: Final = {"fault": "rate_limit", "retry_after": 60}

MOMENTS: Final = {
    "a retry, in its slot": Moment(ASKED_TO_WAIT, {"hold_s": 100.0}, refused),
    "a retry, without a slot": Moment(ASKED_TO_WAIT, {"hold_s": 0.1}, waiting),
    "response headers": Moment({"fault": "stall_before"}, {}, called),
    "the first chunk": Moment({**LONG, "first_token_ms": 60_000}, {}, called),
    "the rest": Moment(LONG, {}, flowing),
    "upstream, which is silent": Moment({**LONG, "fault": "stall", "fault_after": 5}, {}, silent),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_a_job_is_cancelled_while_it_waits_for(stage: Stage, redis_client: redis.Redis, name: str) -> None:
    moment = MOMENTS[name]
    request = body(f"cancelled {stage.stack.namespace}", **moment.script)
    stage.worker(**settings_of(stage, **moment.settings))
    job = stage.client.submit(**request)
    wait_until(lambda: moment.reached(stage, job, request))
    before = arrived(stage.client, job)

    assert job.cancel() is True

    assert_cancelled(stage, job, request, before)
    wait_until(lambda: stage.stack.simulator.active == 0)
    assert_nothing_is_left(stage, job, redis_client)
    assert_slot_is_free(stage, name)
    assert stage.stack.simulator.calls(request) == 1


@pytest.mark.parametrize("hold_s", [100.0, 0.1], ids=["in its slot", "without a slot"])
def test_a_job_is_cancelled_while_it_waits_for_its_turn(stage: Stage, redis_client: redis.Redis, hold_s: float) -> None:
    stage.worker(**settings_of(stage, requests_per_minute=1, hold_s=hold_s))
    stage.client.submit(**body("has the minute's turn")).result()
    limit = f"{stage.stack.namespace}:limit:default"
    asked = redis_client.hget(limit, "requests")
    request = body(f"no turn {stage.stack.namespace}", **LONG)
    job = stage.client.submit(**request)
    if hold_s > 1:  # its turn is reserved, and it sleeps towards it
        wait_until(lambda: redis_client.hget(limit, "requests") != asked)
    else:
        wait_until(lambda: job.status().status == "waiting")

    assert job.cancel() is True

    assert_cancelled(stage, job, request, "")
    assert_nothing_is_left(stage, job, redis_client)
    assert_slot_is_free(stage, "a turn")
    assert stage.stack.simulator.calls(request) == 0


def test_a_queued_job_is_cancelled_and_never_called(stage: Stage, redis_client: redis.Redis) -> None:
    stage.worker(**settings_of(stage))
    ahead = stage.client.submit(**body("ahead", **LONG))
    wait_until(lambda: ahead.status().status == "running")
    request = body(f"queued {stage.stack.namespace}", **LONG)
    job = stage.client.submit(**request)

    assert job.cancel() is True

    assert_cancelled(stage, job, request, "")
    ahead.cancel()
    assert_nothing_is_left(stage, job, redis_client)
    assert_slot_is_free(stage, "queued")
    assert stage.stack.simulator.calls(request) == 0


def test_a_job_is_cancelled_while_its_worker_is_cut_off(stage: Stage, redis_client: redis.Redis) -> None:
    with Proxy(stage.stack.server.url) as proxy:
        request = body("cut off", **LONG)
        stage.worker(**settings_of(stage, redis_url=proxy.url))
        job = stage.client.submit(**request)
        wait_until(lambda: flowing(stage, job, request))
        proxy.stall()
        proxy.cut()
        before = arrived(stage.client, job)

        assert job.cancel() is True

        assert_cancelled(stage, job, request, before)
        assert stage.stack.simulator.active == 1  # nobody could tell its worker
        entries = [entry.id for entry in job.follow()]
        proxy.resume()
        wait_until(lambda: stage.stack.simulator.active == 0)
        assert_nothing_is_left(stage, job, redis_client)
        assert_slot_is_free(stage, "a cut")
        assert [entry.id for entry in job.follow()] == entries


def test_a_job_is_cancelled_while_its_worker_is_frozen(stage: Stage, redis_client: redis.Redis) -> None:
    request = body("frozen", **LONG)
    sleeper = stage.worker(**settings_of(stage))
    job = stage.client.submit(**request)
    wait_until(lambda: flowing(stage, job, request))
    assert sleeper.pid is not None
    os.kill(sleeper.pid, signal.SIGSTOP)
    before = arrived(stage.client, job)

    assert job.cancel() is True

    assert_cancelled(stage, job, request, before)
    entries = [entry.id for entry in job.follow()]
    stage.worker(**settings_of(stage))
    assert_nothing_is_left(stage, job, redis_client)  # the other worker has seen to it
    assert_slot_is_free(stage, "a freeze")
    os.kill(sleeper.pid, signal.SIGCONT)
    wait_until(lambda: stage.stack.simulator.active == 0)
    wait_until(lambda: len(stage.client.overview().workers) == 2)
    assert [entry.id for entry in job.follow()] == entries
    assert_nothing_is_left(stage, job, redis_client)


def test_a_cancel_after_the_end_does_nothing_and_says_so(
    stage: Stage, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    request = body("over", chunks=5)
    stage.worker()
    job = stage.client.submit(**request)
    job.result()
    entries = [(entry.id, entry.raw) for entry in job.follow()]
    for name, value in stage.stack.environment().items():
        monkeypatch.setenv(name, value)

    assert job.cancel() is False
    with pytest.raises(SystemExit) as left:
        main(["cancel", job.id])

    assert left.value.code == 0
    assert capsys.readouterr().out == f"{job.id} had ended already\n"
    assert [(entry.id, entry.raw) for entry in job.follow()] == entries
    stage.check(job.id, request, redis_client)


def test_a_cancel_that_races_with_the_end_leaves_one_end_that_all_agree_on(
    stage: Stage, redis_client: redis.Redis
) -> None:
    stage.worker(settle_s=600.0)
    outcomes = []
    with ThreadPoolExecutor(2) as two:
        for number in range(80):
            request = body(f"race {number}", chunks=6, interval_ms=1)
            job = stage.client.submit(**request)
            wait_at(stage, job, number % 10)
            cancelled = list(two.map(Client.cancel, [stage.client] * 2, [job.id] * 2))
            outcomes.append((job, request, cancelled.count(True)))

    for job, request, won in outcomes:
        entries = list(job.follow())
        assert [entry.kind for entry in entries].count("end") == 1
        assert entries[-1].kind == "end"
        assert won in (0, 1)
        expected = ("cancelled", b"canceled") if won else ("completed", b"finished")
        assert job.status().status == expected[0]
        wait_until(lambda j=job, e=expected: redis_client.hget(f"rq:job:{j.id}", "status") == e[1])  # type: ignore[misc]
        if won:
            with pytest.raises(JobCancelled):
                job.result()
            assert expected_text(request).startswith(arrived(stage.client, job))
        else:
            assert job.result().text == expected_text(request)
    assert {won for _, _, won in outcomes} == {0, 1}
    wait_until(lambda: redis_client.hlen(f"{stage.stack.namespace}:owners") == 0)
    registries = [f"rq:{status}:{stage.stack.namespace}-default" for status in ("canceled", "finished", "wip")]
    won = sum(won for _, _, won in outcomes)
    assert [redis_client.zcard(key) for key in registries] == [won, len(outcomes) - won, 0]
    wait_until(lambda: stage.stack.simulator.active == 0)


def wait_at(stage: Stage, job: Job, length: int) -> None:
    """Until its tape has so many entries, or its end."""
    key = Tape(stage.stack.namespace, job.id).key
    client = stage.client._tape.client

    def there() -> bool:
        rows: Any = client.xrevrange(key, count=1)
        return rows[0][1][b"kind"] == b"end" or client.xlen(key) >= length

    wait_until(there)
