"""A process of its own that owns a server, for the tests that end it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import redis

#: What an owner does: start a server, say where it is, do as `then` says, and go when its standard input closes.
PROGRAM = """
import json, os, pathlib, sys
from tokentape.embedded import EmbeddedServer

binary, data, then = json.loads(sys.argv[1])
server = EmbeddedServer(
    unix_socket=True, binary=binary and pathlib.Path(binary), data=data and pathlib.Path(data)
)
server.start()

def say(**facts):
    print(json.dumps(facts), flush=True)

say(url=server.url, pid=server.pid)
exec(then)
sys.stdin.read()
"""


class Owner:
    """A running owner and what it says."""

    def __init__(self, binary: Path | None, data: Path | None, then: str) -> None:
        arguments = json.dumps([str(binary) if binary else None, str(data) if data else None, then])
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        started = self.hear()
        self.url: str = started["url"]
        self.server_pid: int = started["pid"]
        self.supervisor_pid = parent_of(self.server_pid)
        self.directory = Path(self.url.removeprefix("unix://").removesuffix("?db=0")).parent

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        said: dict[str, Any] = json.loads(self.process.stdout.readline())
        return said

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def interrupt_terminal(self) -> None:
        """What Ctrl-C does: SIGINT to everything in the foreground process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def close(self) -> None:
        """End the owner and what it forked."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def parent_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:"))


def watch(pid: int) -> int:
    """A descriptor that becomes readable when that process has ended."""
    return os.pidfd_open(pid)


def wait_gone(watched: int, wait_s: float = 20.0) -> bool:
    """Wait for the end of a watched process; False where it still runs after `wait_s`."""
    try:
        return bool(select.select([watched], [], [], wait_s)[0])
    finally:
        os.close(watched)
