"""A worker says that it lives: to probes by a file, to systemd by its socket."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokentape.embedded import EmbeddedServer
from tokentape.simulator import SimulatorThread
from tokentape_worker.health import STALE_S, Health, verdict

from .conftest import Stack, body, wait_until


def probe(question: str, file: Path) -> int:
    """The exit code of the probe, run as a container's supervisor runs it."""
    environment = {**os.environ, "TOKENTAPE_HEALTH_FILE": str(file)}
    command = [sys.executable, "-P", "-m", "tokentape_worker.health", question]
    return subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False).returncode


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "health"


@pytest.fixture
def notices(tmp_path: Path) -> Iterator[socket.socket]:
    """systemd's end of the line."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(tmp_path / "notify"))
        line.settimeout(30)
        yield line


def test_before_a_worker_starts_it_is_neither_alive_nor_ready(file: Path) -> None:
    assert probe("live", file) == 1
    assert probe("ready", file) == 1


def test_a_worker_that_joined_is_alive_and_ready(stack: Stack, file: Path) -> None:
    stack.worker(health_file=file)

    wait_until(lambda: verdict(file, "ready", time.monotonic()) is None)

    assert probe("live", file) == 0
    assert probe("ready", file) == 0


def test_a_worker_without_its_server_is_alive_and_not_ready(
    simulator: SimulatorThread, namespace: str, file: Path
) -> None:
    with EmbeddedServer() as server, contextlib.ExitStack() as close:
        worker = Stack(server, simulator, namespace, close).worker_process(TOKENTAPE_HEALTH_FILE=str(file))
        wait_until(lambda: verdict(file, "ready", time.monotonic()) is None)

        server.kill()
        wait_until(lambda: verdict(file, "ready", time.monotonic()))

        assert verdict(file, "live", time.monotonic()) is None
        assert worker.process.poll() is None


def test_a_worker_that_waits_for_its_server_is_alive_and_begins_when_it_is_there(
    simulator: SimulatorThread, namespace: str, file: Path
) -> None:
    with EmbeddedServer() as server, contextlib.ExitStack() as close:
        server.kill()
        stack = Stack(server, simulator, namespace, close)
        stack.worker_process("--wait", TOKENTAPE_HEALTH_FILE=str(file), TOKENTAPE_LOG_LEVEL="error")
        wait_until(lambda: verdict(file, "live", time.monotonic()) is None)
        assert verdict(file, "ready", time.monotonic()) is not None

        server.restart()

        assert stack.client().submit(**body("late server")).result(60).text
        wait_until(lambda: verdict(file, "ready", time.monotonic()) is None)


def test_a_worker_that_waits_for_its_server_is_stopped_by_a_signal(
    simulator: SimulatorThread, namespace: str, file: Path
) -> None:
    with EmbeddedServer() as server, contextlib.ExitStack() as close:
        server.kill()
        stack = Stack(server, simulator, namespace, close)
        worker = stack.worker_process("--wait", TOKENTAPE_HEALTH_FILE=str(file), TOKENTAPE_LOG_LEVEL="error")
        wait_until(lambda: verdict(file, "live", time.monotonic()) is None)

        worker.signal(signal.SIGTERM)

        assert worker.wait() == 0


def test_a_worker_that_drains_is_alive_and_not_ready(stack: Stack, file: Path) -> None:
    client = stack.client()
    worker = stack.worker_process(TOKENTAPE_HEALTH_FILE=str(file), TOKENTAPE_GRACE_S="60")
    job = client.submit(**body("long", chunks=100_000, interval_ms=5))
    wait_until(lambda: client.status(job.id).last_entry_id > "1-1")
    wait_until(lambda: verdict(file, "ready", time.monotonic()) is None)

    worker.signal(signal.SIGTERM)
    wait_until(lambda: verdict(file, "ready", time.monotonic()))

    assert verdict(file, "live", time.monotonic()) is None
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


@pytest.mark.parametrize(
    ("said_at_s", "now_s", "alive"),
    [(100.0, 100.0, True), (100.0, 100.0 + STALE_S, True), (100.0, 101.0 + STALE_S, False), (100.0, 5.0, False)],
    ids=["now", "at the limit", "silent", "from before a reboot"],
)
def test_silence_is_told_by_the_machines_clock(file: Path, said_at_s: float, now_s: float, alive: bool) -> None:
    file.write_text(json.dumps({"at_s": said_at_s, "pid": 1, "ready": True}))

    assert (verdict(file, "live", now_s) is None) is alive


@pytest.mark.parametrize("text", ["", "[]", '{"at_s": null, "ready": true}', "nonsense"])
def test_what_no_worker_wrote_is_no_sign_of_life(file: Path, text: str) -> None:
    file.write_text(text)

    assert verdict(file, "live", time.monotonic()) == f"{file} was not written by a worker"


def test_the_probe_refuses_what_it_does_not_know(file: Path) -> None:
    assert probe("lively", file) == 2


def test_systemd_is_told_of_the_start_the_stop_and_each_beat(notices: socket.socket) -> None:
    health = Health.of(None, {"NOTIFY_SOCKET": notices.getsockname()})

    for ready, stopping in [(False, False), (True, False), (True, False), (False, True)]:
        health.tell(ready=ready, stopping=stopping)

    said = [notices.recv(1024).decode().split("\n") for _ in range(4)]
    assert said == [["WATCHDOG=1"], ["READY=1", "WATCHDOG=1"], ["WATCHDOG=1"], ["STOPPING=1", "WATCHDOG=1"]]


def test_a_worker_process_tells_systemd_when_it_takes_jobs_and_when_it_stops(
    stack: Stack, notices: socket.socket
) -> None:
    worker = stack.worker_process(NOTIFY_SOCKET=notices.getsockname())

    while b"READY=1" not in notices.recv(1024):
        pass
    assert stack.client().overview().workers
    worker.signal(signal.SIGTERM)
    while b"STOPPING=1" not in notices.recv(1024):
        pass

    assert worker.wait() == 0


def test_a_worker_that_has_ended_is_not_ready_whatever_the_time(stack: Stack, file: Path) -> None:
    worker = stack.worker_process(TOKENTAPE_HEALTH_FILE=str(file))
    wait_until(lambda: verdict(file, "ready", time.monotonic()) is None)

    worker.signal(signal.SIGTERM)
    worker.wait()

    assert json.loads(file.read_text())["ready"] is False


def test_systemd_is_told_also_where_the_file_cannot_be_written(notices: socket.socket, tmp_path: Path) -> None:
    health = Health(tmp_path / "no such folder" / "health", notices.getsockname())

    with pytest.raises(OSError, match="No such file"):
        health.tell(ready=True, stopping=False)

    assert notices.recv(1024) == b"READY=1\nWATCHDOG=1"


def test_a_health_file_that_cannot_be_written_stops_no_worker(stack: Stack, tmp_path: Path) -> None:
    client = stack.client()

    stack.worker(health_file=tmp_path / "no such folder" / "health")

    assert client.submit(**body("all the same")).result(60).text
