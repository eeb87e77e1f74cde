"""Workers to be killed: processes forked from one that has everything imported, so that a hundred start soon."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
import redis

from tests.service.conftest import Stack, body, wait_until
from tokentape import Client, Settings
from tokentape.embedded import EmbeddedServer
from tokentape.simulator import SimulatorThread, expected_text
from tokentape.tape import Tape
from tokentape_worker.service import Worker

__all__ = ["Stage", "body", "wait_until"]


def serve(settings: dict[str, Any]) -> None:
    """What a worker process runs."""
    Worker(Settings.load({}, **settings)).serve()


def call(settings: dict[str, Any], function: Callable[[Client], object]) -> None:
    """What a client process runs."""
    with Client(settings=Settings.load({}, **settings)) as client:
        function(client)


class Stage:
    """One test's stack with short leases, processes to kill, and the questions that count at the end."""

    def __init__(self, stack: Stack, processes: ForkServerContext, close: contextlib.ExitStack) -> None:
        self.stack = stack
        self.client = stack.client(**self.short)
        self._processes = processes
        self._close = close

    short: dict[str, Any] = {"lease_s": 0.4, "sweep_s": 0.05, "settle_s": 1.0, "grace_s": 1.0}  # noqa: RUF012

    def settings(self, **overrides: Any) -> dict[str, Any]:
        """For a process: only what differs from the defaults."""
        return self.stack.settings(**{**self.short, **overrides}).model_dump(mode="json", exclude_unset=True)

    def worker(self, **overrides: Any) -> BaseProcess:
        """A worker process."""
        return self._start(serve, self.settings(**overrides))

    def caller(self, function: Callable[[Client], object], **overrides: Any) -> BaseProcess:
        """A process that makes one client and calls a function with it."""
        return self._start(call, self.settings(**overrides), function)

    def _start(self, target: Callable[..., None], *arguments: Any) -> BaseProcess:
        process = self._processes.Process(target=target, args=arguments, daemon=True)
        process.start()
        self._close.callback(self.kill, process)
        return process

    @staticmethod
    def kill(process: BaseProcess) -> None:
        """SIGKILL, and wait until it is gone."""
        if process.pid is not None and process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        process.join(timeout=10)

    def check(self, job_id: str, request: dict[str, Any], redis_client: redis.Redis) -> None:
        """The one right end: exact text, one end, dense, nothing owned, RQ's record agrees."""
        namespace = self.stack.namespace
        assert self.client.result(job_id, wait_s=60).text == expected_text(request)
        rows: Any = redis_client.xrange(Tape(namespace, job_id).key)
        kinds = [row[1][b"kind"] for row in rows]
        assert kinds.count(b"end") == 1
        assert kinds[-1] == b"end"
        entries = list(self.client.follow(job_id))  # raises CorruptTape where it is not dense
        assert len(entries) == len(rows)
        wait_until(lambda: redis_client.hget(f"rq:job:{job_id}", "status") == b"finished")
        wait_until(lambda: redis_client.hlen(f"{namespace}:owners") == 0)
        assert not list(redis_client.scan_iter(f"{namespace}:worker:*"))
        for registry in ("failed", "wip", "canceled", "scheduled"):
            assert redis_client.zcard(f"rq:{registry}:{namespace}-default") == 0, registry
        assert redis_client.llen(f"rq:queue:{namespace}-default") == 0


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Where processes come from: a server that has imported everything, once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.chaos.conftest"])
    return context


@pytest.fixture(scope="session")
def simulator() -> Iterator[SimulatorThread]:
    with SimulatorThread() as running:
        yield running


@pytest.fixture
def stage(
    valkey: EmbeddedServer, simulator: SimulatorThread, namespace: str, processes: ForkServerContext
) -> Iterator[Stage]:
    with contextlib.ExitStack() as close:
        yield Stage(Stack(valkey, simulator, namespace, close), processes, close)
