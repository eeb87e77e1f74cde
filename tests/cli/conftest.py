"""The `tokentape` command on a real server, with a real worker process and the simulator.

Most tests call `main` in this process, which takes milliseconds; those about signals, pipes and imports start one.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import structlog

from tokentape import Client, Settings
from tokentape.cli import main
from tokentape.embedded import EmbeddedServer
from tokentape.simulator import SimulatorThread


@dataclass(frozen=True)
class Outcome:
    """What one run of the command came to."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]
Environment = dict[str, str]


def unique(text: str) -> str:
    """A text never sent before: the simulator counts the calls of a request, for faults that strike only the first."""
    return f"{text} ({uuid.uuid4().hex})"


def body(text: str, **script: Any) -> dict[str, Any]:
    """A chat request; keyword arguments script the simulator's answer."""
    request: dict[str, Any] = {"model": "sim-1", "messages": [{"role": "user", "content": text}]}
    return {**request, "simulate": script} if script else request


def wait_until(condition: Callable[[], Any], limit_s: float = 30.0) -> Any:
    """Poll until something is true, and return it. The limit is there to end a test that failed, not to time it."""
    until = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < until, "the condition never came true"
        time.sleep(0.005)
    return value


@pytest.fixture(scope="session")
def simulator() -> Iterator[SimulatorThread]:
    with SimulatorThread() as simulator:
        yield simulator


@pytest.fixture(scope="session")
def environment(valkey: EmbeddedServer) -> Environment:
    """For processes: settings of a namespace that all tests of this folder share, with a worker."""
    return {
        **os.environ,
        "TOKENTAPE_REDIS_URL": valkey.url,
        "TOKENTAPE_NAMESPACE": f"t{uuid.uuid4().hex[:12]}",
    }


@pytest.fixture(scope="session")
def worker(environment: Environment, simulator: SimulatorThread) -> Iterator[None]:
    """A worker process in the shared namespace."""
    its = {**environment, "OPENAI_BASE_URL": simulator.base_url, "TOKENTAPE_LOG_LEVEL": "error"}
    process = subprocess.Popen([sys.executable, "-P", "-m", "tokentape_worker"], env=its)
    try:
        with Client(settings=settings_of(environment)) as client:
            wait_until(lambda: client.overview().workers)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def settings_of(environment: Environment) -> Settings:
    return Settings.load({name: value for name, value in environment.items() if name.startswith("TOKENTAPE_")})


@pytest.fixture
def client(environment: Environment, worker: None) -> Iterator[Client]:
    """A client of the namespace that has a worker."""
    with Client(settings=settings_of(environment)) as client:
        yield client


@pytest.fixture
def run(environment: Environment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process, in the namespace that has a worker, with `env` over the environment."""
    for name in ("TOKENTAPE_REDIS_URL", "TOKENTAPE_NAMESPACE"):
        monkeypatch.setenv(name, environment[name])

    def run_main(*arguments: str, stdin: bytes = b"", env: Environment | None = None) -> Outcome:
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        structlog.reset_defaults()  # a service sets up the log of its process, which is that of other tests here
        written = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, written.out, written.err)

    return run_main


@pytest.fixture
def idle(namespace: str) -> Environment:
    """Over the environment: a namespace that has no worker."""
    return {"TOKENTAPE_NAMESPACE": namespace}


@pytest.fixture
def idle_client(environment: Environment, idle: Environment) -> Iterator[Client]:
    """A client of the namespace without a worker: its jobs stay queued."""
    with Client(settings=settings_of({**environment, **idle})) as client:
        yield client


def command(*arguments: str) -> list[str]:
    """The command as a process. Its first import is the library's, as it is for the installed script."""
    return [sys.executable, "-P", "-m", "tokentape.cli", *arguments]
