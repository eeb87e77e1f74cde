"""Upstream faults, one by one and in random mixes: what a retry heals is exact, what lasts fails as it should.

First each fault that the simulator knows, on one worker, which runs all the jobs side by side. Then the waits that an
upstream asks for. Last the mixes: Hypothesis draws jobs, their faults and a weather of kills, freezes, drains and cut
connections, and each job must come to the one end that its script allows.

A few mixes run by default, other ones each time; `TOKENTAPE_TEST_MIXES=500` runs more. A mix that fails is printed as
`Failing test case`, is kept in `.hypothesis` and is tried first the next time. Elsewhere it is replayed by the line
printed with it, `@reproduce_failure(…)`, put above the test; and a run with `--hypothesis-seed=N` draws the same mixes
whenever it is repeated with that N (Hypothesis prints an N to use where a mix failed once and then did not). What is
replayed is what was drawn. Which command a kill meets is up to the machine, so a rare failure may want several runs.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from email.utils import formatdate
from multiprocessing.context import ForkServerContext
from typing import Any, NamedTuple

import pytest
import redis
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.service.conftest import Stack
from tokentape import Job, JobFailed
from tokentape.answer_plan import http_error
from tokentape.embedded import EmbeddedServer
from tokentape.queue import QueueKeys
from tokentape.script import FAULTS, Script
from tokentape.simulator import SimulatorThread, chunks, expected_text
from tokentape.tape import Tape

from .conftest import Stage, body, wait_until
from .faulty import (
    ALLOWED,
    BEFORE,
    BROKEN,
    BUDGET,
    HARMLESS,
    IN_STREAM,
    LOSSY,
    MOST_GUSTS,
    Asked,
    Gust,
    Weather,
    asked,
    assert_at_rest,
    attempts,
    gust,
)

#: Chunks before a break; the first of them has no text.
KEPT = 5
MIXES = int(os.environ.get("TOKENTAPE_TEST_MIXES", "6"))
#: What a job has; the wait that a broken upstream asks for is longer.
TIMEOUT_S = 50.0
#: Above the stalls of a busy machine, where a healthy answer would else be given up: both ends stand on it.
PATIENCE = {"first_chunk_timeout_s": 3.0, "idle_timeout_s": 3.0}
MOST_BYTES = 100_000


@contextlib.contextmanager
def new_stage(valkey: EmbeddedServer, simulator: SimulatorThread, processes: ForkServerContext) -> Iterator[Stage]:
    """As the fixture, for what is no function's."""
    with contextlib.ExitStack() as close:
        yield Stage(Stack(valkey, simulator, f"t{uuid.uuid4().hex[:12]}", close), processes, close)


class Case(NamedTuple):
    """A job of the fixture `cases`, and what it asked for."""

    namespace: str
    request: dict[str, Any]
    job: Job
    calls: Callable[[], int]


@pytest.fixture(scope="module")
def cases(
    valkey: EmbeddedServer, simulator: SimulatorThread, processes: ForkServerContext
) -> Iterator[dict[tuple[str, str], Case]]:
    """One worker with a job of each kind, side by side: all of them take as long as the slowest."""
    with new_stage(valkey, simulator, processes) as stage:

        def case(group: str, name: str, script: dict[str, Any], **options: Any) -> Case:
            namespace = stage.stack.namespace
            paced = {"chunks": 20, "interval_ms": 5, "fault_after": KEPT, **script}
            request = body(f"{namespace} {group} {name}", **paced)
            job = stage.client.submit(**request, **options)
            return Case(namespace, request, job, lambda: simulator.calls(request))

        found = {
            ("heals", name): case("heals", name, {"fault": name, "fault_times": 1, "retry_after": 0.05})
            for name in (*BEFORE, *IN_STREAM, *HARMLESS)
        }
        for name, broken in BROKEN.items():
            found["lasts", name] = case("lasts", name, broken.script, timeout_s=TIMEOUT_S)
        stage.worker(**PATIENCE, max_output_bytes=MOST_BYTES)
        yield found


def text_before_the_break(request: dict[str, Any]) -> str:
    sent = chunks(request)[:KEPT]
    return "".join(choice["delta"].get("content") or "" for chunk in sent for choice in chunk["choices"])


def test_every_fault_that_the_simulator_knows_is_tried() -> None:
    assert {*(broken.script["fault"] for broken in BROKEN.values()), *HARMLESS} == set(FAULTS)


@pytest.mark.parametrize("fault", BEFORE)
def test_a_call_that_fails_before_its_first_chunk_is_made_again_in_place(
    cases: dict[tuple[str, str], Case], fault: str
) -> None:
    _, request, job, calls = cases["heals", fault]

    text = job.result(wait_s=60).text

    assert text == expected_text(request)
    assert attempts(job) == [("submitted", text)]
    assert calls() == 2


@pytest.mark.parametrize("fault", IN_STREAM)
def test_a_stream_that_breaks_is_a_new_attempt_and_exact(cases: dict[tuple[str, str], Case], fault: str) -> None:
    _, request, job, calls = cases["heals", fault]

    text = job.result(wait_s=60).text

    assert text == expected_text(request)
    assert attempts(job) == [("submitted", text_before_the_break(request)), (BROKEN[fault].type, text)]
    assert calls() == 2


@pytest.mark.parametrize("fault", HARMLESS)
def test_an_answer_that_is_only_odd_is_complete_at_once(cases: dict[tuple[str, str], Case], fault: str) -> None:
    _, request, job, calls = cases["heals", fault]

    text = job.result(wait_s=60).text

    assert text == expected_text(request)
    assert attempts(job) == [("submitted", text)]
    assert calls() == 1


@pytest.mark.parametrize("name", BROKEN)
def test_a_fault_that_lasts_fails_within_the_attempts_that_are_allowed(
    cases: dict[tuple[str, str], Case], redis_client: redis.Redis, name: str
) -> None:
    namespace, request, job, calls = cases["lasts", name]
    _, type_, expected_calls, expected_attempts = BROKEN[name]

    with pytest.raises(JobFailed) as caught:
        job.result(wait_s=60)

    assert caught.value.error.type == type_
    texts = [text for _, text in attempts(job)]
    assert (calls(), len(texts)) == (expected_calls, expected_attempts)
    if name in IN_STREAM:
        assert texts == [text_before_the_break(request)] * BUDGET  # what had arrived is kept
    elif name == "huge":
        assert texts[0].startswith(text_before_the_break(request) + "no end ")
    else:
        assert texts == [""]
    assert not redis_client.exists(Tape(namespace, job.id).result_key)


def test_a_backoff_too_long_for_the_slot_is_counted_as_any_other(stage: Stage) -> None:
    request = body(f"{stage.stack.namespace} counted", fault="status")
    stage.worker(hold_s=0.0)

    job = stage.client.submit(**request)

    with pytest.raises(JobFailed):
        job.result(wait_s=60)
    assert attempts(job) == [("submitted", ""), *[("upstream_error", "")] * (BUDGET - 1)]
    assert stage.stack.simulator.calls(request) == BUDGET


@pytest.mark.parametrize("hold_s", [0.0, 3.0], ids=["without its slot", "in its slot"])
def test_waits_that_upstream_asks_for_spend_no_attempt(stage: Stage, hold_s: float) -> None:
    turns = [*["rate_limit"] * BUDGET, "truncate"]
    request = body(f"{stage.stack.namespace} spared", fault=turns, fault_times=len(turns), retry_after=0.02)
    stage.worker(hold_s=hold_s)

    job = stage.client.submit(**request)

    assert job.result(wait_s=60).text == expected_text(request)
    assert stage.stack.simulator.calls(request) == len(turns) + 1


def reasons_of_exact(job: Job, request: dict[str, Any]) -> list[str]:
    assert job.result(wait_s=60).text == expected_text(request)
    return [reason for reason, _ in attempts(job)]


def in_a_second_or_two() -> str:
    return formatdate(time.time() + 2, usegmt=True)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Retry-After", lambda: "0.5"),
        ("Retry-After", in_a_second_or_two),
        ("retry-after-ms", lambda: "500"),
        ("x-ms-retry-after-ms", lambda: "500"),
    ],
    ids=["seconds", "date", "ms", "Azure's ms"],
)
def test_a_wait_is_obeyed_however_it_is_said(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, header: str, value: Callable[[], str]
) -> None:
    def said(script: Script, *, limited: bool) -> tuple[int, dict[str, str], dict[str, Any]]:
        status, _, error = http_error(script, limited=limited)
        return status, {header: value()}, error

    monkeypatch.setattr("tokentape.simulator.http_error", said)
    request = body(f"{stage.stack.namespace} said", fault="rate_limit", fault_times=1)
    stage.worker(hold_s=0.2)

    job = stage.client.submit(**request)

    # A wait of milliseconds would have been held, one of minutes would not be over.
    assert reasons_of_exact(job, request) == ["submitted", "wait"]


def test_a_long_wait_gives_the_slot_back_and_survives_its_worker(stage: Stage, redis_client: redis.Redis) -> None:
    namespace = stage.stack.namespace
    request = body(f"{namespace} waits", fault="rate_limit", retry_after=100, fault_times=1)
    waiting = stage.client.submit(**request)
    first = stage.worker(concurrency=1)
    wait_until(lambda: waiting.status().status == "waiting")

    beside = body(f"{namespace} beside")
    assert reasons_of_exact(stage.client.submit(**beside), beside) == ["submitted"]
    assert waiting.status().status == "waiting"
    stage.kill(first)
    stage.worker(concurrency=1)
    wait_until(lambda: [worker.lease_s > 0 for worker in stage.client.overview().workers] == [True])
    assert waiting.status().status == "waiting"
    redis_client.zadd(QueueKeys(namespace).delayed("default"), {waiting.id: 0})  # the time has come

    assert reasons_of_exact(waiting, request) == ["submitted", "wait"]
    assert stage.stack.simulator.calls(request) == 2


# ---- mixes


def text_of(job: Job) -> str | None:
    """None where the job has failed."""
    try:
        return job.result(wait_s=60).text
    except JobFailed:
        return None


@pytest.mark.timeout(3600)
@settings(
    max_examples=MIXES,
    derandomize=False,
    deadline=None,
    print_blob=True,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a mix takes a second or more: no smaller one is looked for
)
@given(
    mix=st.lists(asked, min_size=4, max_size=8),
    gusts=st.lists(gust, min_size=1, max_size=MOST_GUSTS).map(lambda some: sorted(some, key=lambda one: one.at)),
)
def test_every_job_of_a_mix_comes_to_its_one_right_end(
    valkey: EmbeddedServer,
    simulator: SimulatorThread,
    processes: ForkServerContext,
    mix: list[Asked],
    gusts: list[Gust],
) -> None:
    upstreams = {name: {"base_url": simulator.base_url, "max_attempts": n, **PATIENCE} for name, n in ALLOWED.items()}
    common: dict[str, Any] = {"upstreams": upstreams, "hold_s": 0.2, "grace_s": 0.2, "max_output_bytes": MOST_BYTES}
    common["concurrency"] = 3  # so that both workers have some
    with new_stage(valkey, simulator, processes) as stage, redis.Redis.from_url(valkey.url) as redis_client:
        namespace = stage.stack.namespace
        client = stage.stack.client(**common)
        weather = Weather(namespace, lambda: stage.worker(**common), redis_client)
        requests = [body(f"{namespace} {n}", **one.script) for n, one in enumerate(mix)]
        jobs = [
            client.submit(request=request, upstream=one.upstream, timeout_s=TIMEOUT_S)
            for one, request in zip(mix, requests, strict=True)
        ]

        for sudden in gusts:
            weather.befall(sudden, [Tape(namespace, job.id).key for job in jobs])
        texts = [text_of(job) for job in jobs]
        weather.thaw()

        lossy = any(sudden.what in LOSSY for sudden in gusts)
        for one, request, job, text in zip(mix, requests, jobs, texts, strict=True):
            error = job.status().error
            began = [reason for reason, _ in attempts(job)]
            seen = (one, error, began)
            if one.fails is None:
                assert text == expected_text(request), seen
            else:
                assert text is None, seen
                assert error is not None
                assert error.type == one.fails or (lossy and error.type == "worker_lost"), seen
            assert sum(reason not in ("drained", "wait") for reason in began) <= ALLOWED[one.upstream], seen
        assert_at_rest(client, redis_client)
        assert all(worker.is_alive() for worker in weather.live)
        for worker in weather.left:
            worker.join(timeout=30)
        assert {worker.exitcode for worker in weather.left} <= {0}
