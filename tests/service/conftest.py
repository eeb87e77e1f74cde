"""The whole stack for one test: a real server, the simulator, workers in threads or in processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tokentape import Client, Settings
from tokentape.embedded import EmbeddedServer
from tokentape.simulator import SimulatorThread
from tokentape_worker.embedded import EmbeddedWorker


def wait_until(condition: Callable[[], Any], limit_s: float = 30.0) -> Any:
    """Poll until something is true, and return it. The limit is there to end a test that failed, not to time it."""
    until = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < until, "the condition never came true"
        time.sleep(0.005)
    return value


def body(text: str = "Hello", **script: Any) -> dict[str, Any]:
    """A chat request; keyword arguments script the simulator's answer."""
    request: dict[str, Any] = {"model": "sim-1", "messages": [{"role": "user", "content": text}]}
    if script:
        request["simulate"] = script
    return request


class WorkerProcess:
    """A worker as users run it, to be killed."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        command = [sys.executable, "-P", "-m", "tokentape_worker", *arguments]
        self.process = subprocess.Popen(command, env=environment)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)

    def wait(self) -> int:
        return self.process.wait(timeout=60)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()


class Stack:
    """One test's namespace on the shared server."""

    def __init__(self, server: EmbeddedServer, simulator: SimulatorThread, namespace: str, close: Any) -> None:
        self.server = server
        self.simulator = simulator
        self.namespace = namespace
        self._close: contextlib.ExitStack = close

    def settings(self, **overrides: Any) -> Settings:
        """Short intervals, so that recovery is seen soon."""
        upstream: dict[str, Any] = {
            "base_url": self.simulator.base_url,
            "max_attempts": overrides.pop("max_attempts", 3),
        }
        for name in ("connect_timeout_s", "first_chunk_timeout_s", "idle_timeout_s", "max_concurrency"):
            if name in overrides:
                upstream[name] = overrides.pop(name)
        values = {
            "redis_url": self.server.url,
            "namespace": self.namespace,
            "lease_s": 1.0,
            "sweep_s": 0.1,
            "grace_s": 5.0,
            "log_level": "error",
            "upstreams": {"default": upstream},
        }
        return Settings.load({}, **{**values, **overrides})

    def client(self, **overrides: Any) -> Client:
        return self._close.enter_context(Client(settings=self.settings(**overrides)))

    def worker(self, **overrides: Any) -> EmbeddedWorker:
        worker = EmbeddedWorker(self.settings(**overrides))
        self._close.callback(worker.stop_at_once)
        worker.start()
        return worker

    def environment(self, **overrides: str) -> dict[str, str]:
        """For processes: the same settings as `settings`."""
        own = {
            "TOKENTAPE_REDIS_URL": self.server.url,
            "TOKENTAPE_NAMESPACE": self.namespace,
            "TOKENTAPE_LEASE_S": "1",
            "TOKENTAPE_SWEEP_S": "0.1",
            "TOKENTAPE_GRACE_S": "5",
            "TOKENTAPE_LOG_LEVEL": "warning",
            "OPENAI_BASE_URL": self.simulator.base_url,
        }
        return {**os.environ, **own, **overrides}

    def worker_process(self, *arguments: str, **overrides: str) -> WorkerProcess:
        worker = WorkerProcess(self.environment(**overrides), *arguments)
        self._close.callback(worker.close)
        return worker


@pytest.fixture(scope="session")
def simulator() -> Iterator[SimulatorThread]:
    with SimulatorThread() as running:
        yield running


@pytest.fixture
def stack(valkey: EmbeddedServer, simulator: SimulatorThread, namespace: str) -> Iterator[Stack]:
    with contextlib.ExitStack() as close:
        yield Stack(valkey, simulator, namespace, close)
