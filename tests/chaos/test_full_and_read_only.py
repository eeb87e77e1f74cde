"""A server that refuses: its memory is full, it has become a replica, it is away for longer than any lease."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import redis
from rq.job import Job as RqJob
from rq.registry import FailedJobRegistry
from rq.serializers import JSONSerializer

from tests.service.conftest import Stack
from tokentape import Entry, Job, TokentapeError
from tokentape.embedded import EmbeddedServer
from tokentape.simulator import SimulatorThread, expected_text

from .conftest import Stage, body, wait_until
from .test_storms import assert_exact, submitted, wait_streaming

MIB = 1024 * 1024


#: It loses nothing when it is killed, and does not wait five seconds for further replicas before it sends its data.
CONFIG = {"appendfsync": "always", "repl-diskless-sync-delay": "0"}


@pytest.fixture
def server(tmp_path: Path, server_binary: Path | None) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(data=tmp_path / "data", config=CONFIG, binary=server_binary) as own:
        yield own


@pytest.fixture
def admin(server: EmbeddedServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as connection:
        yield connection


@pytest.fixture
def own_stage(
    server: EmbeddedServer, simulator: SimulatorThread, namespace: str, processes: ForkServerContext
) -> Iterator[Stage]:
    with contextlib.ExitStack() as close:
        yield Stage(Stack(server, simulator, namespace, close), processes, close)


class Live:
    """A reader that is there all the time, in a thread."""

    def __init__(self, job: Job) -> None:
        self.entries: list[Entry] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._follow, args=(job,), daemon=True)
        self._thread.start()

    def _follow(self, job: Job) -> None:
        try:
            for entry in job.follow():
                self.entries.append(entry)
        except Exception as error:  # noqa: BLE001  (whatever it is, the test looks at it)
            self._error = error

    def check(self, request: dict[str, Any]) -> None:
        """It has seen each entry of one attempt once, in order, up to the end, and they make the right text."""
        self._thread.join(timeout=60)
        assert self._error is None
        ids = [entry.id for entry in self.entries]
        assert ids == ["0-1", "1-0", *(f"1-{n}" for n in range(1, len(ids) - 1))]
        assert [entry.kind for entry in self.entries].count("end") == 1
        assert self.entries[-1].kind == "end"
        chunks: list[Any] = [entry.data for entry in self.entries if entry.kind == "chunk"]
        text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
        assert text == expected_text(request)


class Leases:
    """The leases of the workers that were there when this was made."""

    def __init__(self, stage: Stage, connection: redis.Redis) -> None:
        self._key = f"{stage.stack.namespace}:leases"
        self._length_ms = stage.short["lease_s"] * 1000
        self._connection = connection
        self._begun = self._ends()

    def wait_renewed(self, times: int = 4) -> None:
        """Until each of them ends so many leases later than at first. No other worker has come, and none has gone."""
        by_ms = times * self._length_ms
        wait_until(lambda: all(self._ends().get(name, 0) > end + by_ms for name, end in self._begun.items()))
        assert self._ends().keys() == self._begun.keys()

    def _ends(self) -> dict[bytes, float]:
        rows: Any = self._connection.zrange(self._key, 0, -1, withscores=True)
        return dict(rows)


def start_two(stage: Stage, **settings: Any) -> None:
    """Two workers, and both have joined."""
    for _ in range(2):
        stage.worker(**settings)
    wait_until(lambda: len(stage.client.overview().workers) == 2)


def last_ids(jobs: list[Job]) -> list[str]:
    return [job.status().last_entry_id for job in jobs]


def assert_books(stage: Stage, connection: redis.Redis) -> None:
    """Nobody owns anything, and no registry but those of ended jobs holds any."""
    namespace = stage.stack.namespace
    wait_until(lambda: connection.hlen(f"{namespace}:owners") == 0)
    assert not list(connection.scan_iter(f"{namespace}:worker:*"))
    assert connection.llen(f"rq:queue:{namespace}-default") == 0
    for registry in ("wip", "scheduled"):
        assert connection.zcard(f"rq:{registry}:{namespace}-default") == 0, registry


# ---- memory


class Memory:
    """A server's memory, which somebody else fills and empties."""

    def __init__(self, admin: redis.Redis) -> None:
        self._admin = admin
        admin.config_set("maxmemory", admin.info("memory")["used_memory"] + 64 * MIB)

    def fill(self) -> None:
        self._admin.setrange("filler", 80 * MIB, "x")
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            self._admin.set("one more", 1)

    def free(self) -> None:
        self._admin.delete("filler")


@pytest.fixture
def memory(admin: redis.Redis) -> Memory:
    return Memory(admin)


def test_streams_wait_for_memory_and_go_on_where_they_were(
    own_stage: Stage, admin: redis.Redis, memory: Memory
) -> None:
    requests, jobs = submitted(own_stage, 20, chunks=150, interval_ms=10)
    readers = [Live(job) for job in jobs[:3]]
    start_two(own_stage)
    wait_streaming(own_stage, jobs)

    memory.fill()
    before = last_ids(jobs)
    leases = Leases(own_stage, admin)
    wait_until(lambda: own_stage.stack.simulator.active == 0)  # upstream has said all of it
    leases.wait_renewed()
    assert last_ids(jobs) == before
    assert own_stage.client.overview().running == 20
    memory.free()

    assert_exact(requests, jobs)
    assert {job.status().attempts for job in jobs} == {1}
    for reader, request in zip(readers, requests, strict=False):
        reader.check(request)
    assert_books(own_stage, admin)


def test_a_worker_holds_no_more_than_its_bound_while_memory_is_full(
    own_stage: Stage, admin: redis.Redis, memory: Memory
) -> None:
    # Answers far longer than what the bound and the sockets hold.
    requests, jobs = submitted(own_stage, 2, first_token_ms=500, chunks=256, chunk_bytes=MIB // 16)
    own_stage.worker(max_unpublished_bytes=MIB, max_output_bytes=32 * MIB)
    wait_until(lambda: own_stage.stack.simulator.active == 2)

    memory.fill()
    Leases(own_stage, admin).wait_renewed(5)
    assert own_stage.stack.simulator.active == 2  # it does not read on
    memory.free()

    assert_exact(requests, jobs)
    assert {job.status().attempts for job in jobs} == {1}
    assert_books(own_stage, admin)


def test_nothing_new_is_taken_on_while_memory_is_full(own_stage: Stage, admin: redis.Redis, memory: Memory) -> None:
    requests, jobs = submitted(own_stage, 10, chunks=150, interval_ms=10)
    own_stage.worker(concurrency=10)
    wait_streaming(own_stage, jobs)
    queued_requests, queued = submitted(own_stage, 5, chunks=7)

    memory.fill()
    jobs[0].cancel()
    wait_until(lambda: own_stage.client.overview().running == 9)
    Leases(own_stage, admin).wait_renewed()  # a slot has been free for some time
    assert own_stage.client.overview().queued["default"] == 5
    assert last_ids(queued) == ["0-1"] * 5
    with pytest.raises(TokentapeError, match="maxmemory"):
        own_stage.client.submit(**body("one more"))
    memory.free()

    assert_exact([*requests[1:], *queued_requests], [*jobs[1:], *queued])
    assert {job.status().attempts for job in (*jobs[1:], *queued)} == {1}
    assert_books(own_stage, admin)


def test_streams_fail_cleanly_where_memory_stays_full(own_stage: Stage, admin: redis.Redis, memory: Memory) -> None:
    requests, jobs = submitted(own_stage, 20, chunks=10_000, interval_ms=10)
    start_two(own_stage, storage_wait_s=0.5)
    wait_streaming(own_stage, jobs)
    leases = Leases(own_stage, admin)

    memory.fill()
    before = last_ids(jobs)
    for job in jobs:
        wait_until(lambda j=job: j.status().status == "failed")  # type: ignore[misc]

    wait_until(lambda: own_stage.stack.simulator.active == 0)
    assert_books(own_stage, admin)
    names: dict[str, Any] = {"connection": admin, "serializer": JSONSerializer}
    failed = FailedJobRegistry(f"{own_stage.stack.namespace}-default", **names)
    assert sorted(failed.get_job_ids(cleanup=False)) == sorted(job.id for job in jobs)
    assert all(RqJob.fetch(job.id, **names).is_failed for job in jobs)
    for job, request, last in zip(jobs, requests, before, strict=True):
        view = job.status()
        assert view.error is not None
        assert (view.error.type, view.error.retryable, view.attempts) == ("storage_full", True, 1)
        entries = list(job.follow())
        assert [entry.kind for entry in entries].count("end") == 1
        assert entries[-2].id == last  # the end follows what stood there when memory was full
        text = own_stage.client.partial(job.id).text
        assert text
        assert expected_text(request).startswith(text)
    memory.free()
    after = own_stage.client.submit(**body("there is room again"))
    assert after.result().text == expected_text(body("there is room again"))
    leases.wait_renewed(1)  # the same workers


# ---- a primary that turns replica


def test_a_primary_that_was_a_replica_for_a_while_is_waited_for(
    own_stage: Stage, admin: redis.Redis, server_binary: Path | None
) -> None:
    requests, jobs = submitted(own_stage, 20, chunks=250, interval_ms=10)
    readers = [Live(job) for job in jobs[:3]]
    start_two(own_stage)
    wait_streaming(own_stage, jobs)
    workers = {worker.name for worker in own_stage.client.overview().workers}

    with EmbeddedServer(config=CONFIG, binary=server_binary) as other, redis.Redis.from_url(other.url) as spare:
        become_replica(spare, of=admin)
        spare.replicaof("NO", "ONE")
        become_replica(admin, of=spare)  # nobody was told: they still write to the old primary
        with pytest.raises(redis.exceptions.ReadOnlyError):
            admin.set("anything", 1)
        wait_until(lambda: own_stage.stack.simulator.active == 0)
        admin.replicaof("NO", "ONE")

    assert_exact(requests, jobs)
    assert {job.status().attempts for job in jobs} == {1}
    assert {worker.name for worker in own_stage.client.overview().workers} == workers
    for reader, request in zip(readers, requests, strict=False):
        reader.check(request)
    assert_books(own_stage, admin)


def become_replica(one: redis.Redis, *, of: redis.Redis) -> None:
    where = of.connection_pool.connection_kwargs
    one.replicaof(where["host"], where["port"])
    wait_until(lambda: one.info("replication").get("master_link_status") == "up")


# ---- long outages


@pytest.mark.parametrize(
    ("settings", "outage_s"),
    [
        pytest.param({}, 2, id="five short leases"),
        pytest.param(
            {"lease_s": 5.0, "sweep_s": 1.0, "settle_s": 10.0, "grace_s": 30.0}, 30, id="30 s",
            marks=[pytest.mark.slow, pytest.mark.timeout(240)],
        ),
    ],
)  # fmt: skip
def test_streams_and_readers_go_on_after_a_long_outage(
    own_stage: Stage, server: EmbeddedServer, admin: redis.Redis, settings: dict[str, Any], outage_s: int
) -> None:
    interval_ms = outage_s * 10  # so that upstream takes as long as the outage for a hundred chunks
    requests, jobs = submitted(own_stage, 20, chunks=100, interval_ms=interval_ms)
    longer_requests, longer = submitted(own_stage, 5, chunks=120, interval_ms=interval_ms)
    readers = [(Live(jobs[0]), requests[0]), (Live(longer[0]), longer_requests[0])]
    start_two(own_stage, **settings)
    wait_streaming(own_stage, [*jobs, *longer])
    workers = {worker.name for worker in own_stage.client.overview().workers}

    server.kill()
    wait_until(lambda: own_stage.stack.simulator.active == len(longer), limit_s=100.0)
    server.restart()

    assert_exact([*requests, *longer_requests], [*jobs, *longer])
    assert {job.status().attempts for job in (*jobs, *longer)} == {1}
    assert {worker.name for worker in own_stage.client.overview().workers} == workers
    for reader, request in readers:
        reader.check(request)
    assert_books(own_stage, admin)
