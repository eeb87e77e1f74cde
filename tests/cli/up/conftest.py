"""A running `tokentape up`, and the other terminals of its user."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tokentape import Client
from tokentape.embedded import EmbeddedServer

from ..conftest import Environment, command, settings_of, wait_until

WAIT_S = 60.0
READY = "answers; try, in another terminal: "
#: Long enough to be in the middle of, whatever else the machine does.
LONG: dict[str, Any] = {"chunks": 4000, "interval_ms": 50}


class UpProcess:
    """A running `tokentape up`. Its processes are known by a mark in their environment, which they all inherit."""

    def __init__(self, environment: Environment, *options: str) -> None:
        self._mark = f"UP_OF_TEST={uuid.uuid4().hex}"
        name, value = self._mark.split("=")
        self.process = subprocess.Popen(
            command("up", *options),
            env={**environment, name: value},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.log: list[str] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def wait_said(self, text: str, times: int = 1) -> list[str]:
        """The log's lines that say it, once there are so many."""
        return wait_until(lambda: len(found := self.said(text)) >= times and found, WAIT_S)  # type: ignore[no-any-return]

    def said(self, text: str) -> list[str]:
        return [line for line in list(self.log) if text in line]

    def ready(self) -> UpProcess:
        """Once all that it starts is there, and its worker takes jobs."""
        self.wait_said(READY)
        self.wait_said("worker ready")
        return self

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ctrl_c(self) -> None:
        """As a terminal does it: to all processes of the group that runs in its foreground."""
        os.killpg(self.process.pid, signal.SIGINT)

    def finish(self) -> tuple[int, str]:
        """-> exit code, stdout"""
        assert self.process.stdout is not None
        out = self.process.stdout.read()
        code = self.process.wait(timeout=WAIT_S)
        self._listener.join(timeout=WAIT_S)
        return code, out

    def pid_of(self, name: str) -> int:
        """The process that runs under a name in the log."""
        return int(self.wait_said(f"{name} started")[-1].rpartition("pid=")[2])

    def port_of(self, said: str) -> int:
        """The port that stands in a line of the log."""
        return int(re.findall(r"127\.0\.0\.1:(\d+)", self.wait_said(said)[0])[0])

    def processes(self) -> list[int]:
        """All that belong to it and run."""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and self._mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:  # ended meanwhile, or another user's
                continue
        return found

    def close(self) -> None:
        self.process.kill()
        wait_until(lambda: not self.processes(), WAIT_S)
        self.process.wait()
        self._listener.join(timeout=WAIT_S)  # a file that another thread reads cannot be closed
        for end in (self.process.stdout, self.process.stderr):
            if end is not None:
                end.close()


Start = Callable[..., UpProcess]


@pytest.fixture
def terminal(tmp_path: Path) -> Environment:
    """The environment of all terminals of one user, who has set nothing; scratch directories are looked at after."""
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "tmp").mkdir()
    return {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "run"), "TMPDIR": str(tmp_path / "tmp")}


@pytest.fixture
def start(terminal: Environment) -> Iterator[Start]:
    started: list[UpProcess] = []

    def start_up(*options: str, env: Environment | None = None) -> UpProcess:
        started.append(UpProcess({**terminal, **(env or {})}, *options))
        return started[-1]

    yield start_up
    for one in started:
        one.close()


@pytest.fixture
def elsewhere(valkey: EmbeddedServer, namespace: str) -> Environment:
    """Names a server that outlives `up`, to look at what it left there."""
    return {"TOKENTAPE_REDIS_URL": valkey.url, "TOKENTAPE_NAMESPACE": namespace}


@pytest.fixture
def elsewhere_client(elsewhere: Environment) -> Iterator[Client]:
    with Client(settings=settings_of(elsewhere)) as client:
        yield client


def tokentape(environment: Environment, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command, in another terminal."""
    return subprocess.run(
        command(*arguments), env=environment, input=stdin, capture_output=True, text=True, timeout=WAIT_S, check=False
    )


def leftovers(terminal: Environment) -> list[Path]:
    """Files that are neither the runtime folder itself nor gone."""
    folders = (Path(terminal["TMPDIR"]), Path(terminal["XDG_RUNTIME_DIR"]))
    return [path for folder in folders for path in folder.rglob("*") if path.name != "tokentape"]


def exported(out: str) -> str:
    (line,) = out.splitlines()
    return shlex.split(line)[1].removeprefix("TOKENTAPE_REDIS_URL=")
