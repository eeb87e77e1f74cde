"""Bounds: what one job may put out, what one worker holds unpublished, what one reader buffers."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import redis

from tokentape import Entry, Job
from tokentape.simulator import expected_text
from tokentape.tape import Tape
from tokentape_worker import service
from tokentape_worker.publisher import Publisher, Track

from .conftest import Stage, body, wait_until
from .proxy import Proxy
from .test_storms import assert_exact, submitted, wait_streaming

KIB = 1024
MIB = 1024 * KIB

#: Far beyond what the sockets between the simulator and a worker hold.
LONG: dict[str, Any] = {"chunks": 256, "chunk_bytes": 64 * KIB}


def kinds(entries: list[Entry]) -> list[str]:
    return [entry.kind for entry in entries]


# ---- one job's output


def test_a_job_that_puts_out_too_much_fails_alone_and_keeps_what_fits(stage: Stage, redis_client: redis.Redis) -> None:
    limit = 100 * KIB
    neighbours, their_jobs = submitted(stage, 10, chunks=150, interval_ms=10)
    stage.worker(max_output_bytes=limit)
    wait_streaming(stage, their_jobs)

    request = body("without end", chunks=10_000, chunk_bytes=KIB, interval_ms=1)
    job = stage.client.submit(**request)
    view = wait_until(lambda: (v := job.status()).status == "failed" and v)

    assert (view.error.type, view.error.retryable, view.attempts) == ("output_too_large", False, 1)
    entries = list(job.follow())
    assert kinds(entries).count("end") == 1
    stored = sum(len(entry.raw) for entry in entries if entry.kind == "chunk")
    assert limit / 2 < stored <= limit
    text = stage.client.partial(job.id).text
    assert text
    assert expected_text(request).startswith(text)
    assert_exact(neighbours, their_jobs)
    assert {one.status().attempts for one in their_jobs} == {1}
    assert stage.stack.simulator.calls(request) == 1
    wait_until(lambda: stage.stack.simulator.active == 0)  # nobody reads what comes after the limit
    namespace = stage.stack.namespace
    wait_until(lambda: redis_client.hlen(f"{namespace}:owners") == 0)
    assert redis_client.zscore(f"rq:failed:{namespace}-default", job.id) is not None


# ---- what a worker holds


class Watched(Publisher):
    """A worker's publisher, and the most that it has held."""

    made: list[Watched]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.most = 0
        self.made.append(self)

    def added(self, track: Track, size: int) -> None:
        super().added(track, size)
        self.most = max(self.most, self._unpublished)

    @property
    def is_full(self) -> bool:
        return not self._room.is_set()


@pytest.fixture
def publishers(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """Those of the workers in threads."""
    made: list[Watched] = []
    monkeypatch.setattr(Watched, "made", made, raising=False)
    monkeypatch.setattr(service, "Publisher", Watched)
    return made


@pytest.fixture
def proxy(stage: Stage) -> Proxy:
    """It stands until the stage's workers have left."""
    proxy: Proxy = stage._close.enter_context(Proxy(stage.stack.server.url))
    return proxy


def test_a_worker_that_cannot_publish_stops_reading_upstream(
    stage: Stage, proxy: Proxy, publishers: list[Watched]
) -> None:
    bound = 2 * MIB
    requests, jobs = submitted(stage, 2, first_token_ms=3000, **LONG)
    sizes: dict[str, Any] = {"max_output_bytes": 32 * MIB, "max_unpublished_bytes": bound}
    stage.stack.worker(redis_url=proxy.url, lease_s=60.0, **sizes)
    wait_until(lambda: stage.stack.simulator.active == 2)

    proxy.stall()
    (publisher,) = publishers
    wait_until(lambda: publisher.is_full)
    before = [job.status().last_entry_id for job in jobs]
    # In the meantime another worker reads as much, from the first byte to the last.
    stage.worker(**sizes)
    (neighbour,), (its_job,) = submitted(stage, 1, **LONG, first_token_ms=1)
    assert its_job.result().text == expected_text(neighbour)

    assert stage.stack.simulator.active == 2
    assert [job.status().last_entry_id for job in jobs] == before
    proxy.resume()
    assert_exact(requests, jobs)
    assert {job.status().attempts for job in jobs} == {1}
    assert bound < publisher.most < bound + 2 * MIB  # each stream had one read under way


# ---- what a reader buffers


class Quick(threading.Thread):
    """A reader that reads whatever comes."""

    def __init__(self, job: Job) -> None:
        super().__init__(daemon=True)
        self._job = job
        self.entries: list[Entry] = []

    def run(self) -> None:
        for entry in self._job.follow():
            self.entries.append(entry)


def test_a_reader_that_does_not_read_misses_nothing_and_slows_nobody(stage: Stage) -> None:
    limit = 64 * KIB
    client = stage.stack.client(reader_buffer_bytes=limit)
    request = body("a long answer", chunks=2000, chunk_bytes=KIB, interval_ms=0.1)
    job = client.submit(**request)
    slow = job.follow()
    assert next(slow).kind == "queued"
    stage.worker()
    assert next(slow).kind == "attempt"  # what comes after the first page comes through the hub
    (feed,) = client._hub._board._feeds[Tape(stage.stack.namespace, job.id).key]

    quick = Quick(job)
    quick.start()
    quick.join(timeout=60)

    assert kinds(quick.entries)[-1] == "end"
    assert feed.closed == "behind"
    assert feed._bytes < limit + 1500 * KIB  # one read of the hub's is what it is over
    rest = list(slow)
    ids = ["0-1", "1-0", *(f"1-{n}" for n in range(1, len(quick.entries) - 1))]
    assert [entry.id for entry in quick.entries] == ids
    assert [entry.id for entry in rest] == ids[2:]
    assert [entry.raw for entry in rest] == [entry.raw for entry in quick.entries[2:]]
    assert job.result().text == expected_text(request)
