"""Runs one server for one owner, and ends it when the owner is gone. A program of its own; embedded.py starts it.

The owner holds the other end of a socket that nobody else has. The kernel closes that end when the owner is gone, by
whatever signal, and the closed socket is the order to finish: the server gets SIGTERM, after `grace_s` SIGKILL, and
the scratch directory (configuration, log, Unix socket) is removed. That is why the directory is made here, and why the
server is a child of this process and not of the owner.

It lives in a session of its own, so that Ctrl-C in a terminal ends the owner, and the server only after it. It uses
the standard library alone and starts with `python -I -S`, which takes about 30 ms and depends on no environment.

The conversation is one JSON object a line, one answer to each:

    first line        the arrangement: {"binary", "config", "data", "grace_s", "lock_wait_s"}; no answer
    {"do": "start"}   {"pid", "directory"}, or {"error"}, as where the data belongs to another server
    {"do": "look"}    {"exited": the exit code, or null while it runs}
    {"do": "stop"}    as look, once the server was told to save and go
    {"do": "kill"}    as look, once the server was killed
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any, Final, TextIO

#: Unix socket paths end at 103 bytes on macOS and 107 on Linux; a longer TMPDIR is passed over.
MAX_SOCKET_PATH: Final = 103


class Server:
    """The one server process, its scratch directory's files, and the lock on its data."""

    def __init__(self, arrangement: dict[str, Any], directory: Path) -> None:
        self._binary: str = arrangement["binary"]
        self._data = Path(arrangement["data"]) if arrangement["data"] else None
        self._grace_s: float = arrangement["grace_s"]
        self._lock_wait_s: float = arrangement["lock_wait_s"]
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        path = quoted(str(directory / "server.sock"))
        self._config = f"{arrangement['config']}\nunixsocket {path}\nunixsocketperm 700\n"

    def start(self) -> dict[str, Any]:
        try:
            if self._data is not None and self._lock is None:
                self._lock = lock(self._data / "tokentape.lock", self._lock_wait_s)
            self._process = self._spawn()
        except InUse as error:
            return {"error": f"{self._data} is in use by {error}; stop that one, or name another folder"}
        except OSError as error:
            return {"error": f"{error.filename or self._binary}: {error.strerror}"}
        return {"pid": self._process.pid, "directory": str(self._directory)}

    def _spawn(self) -> subprocess.Popen[bytes]:
        # Each time: a service that tidies up temporary files may have taken it meanwhile.
        (self._directory / "server.conf").write_text(self._config)
        with (self._directory / "server.log").open("ab") as log:
            return subprocess.Popen(
                [self._binary, str(self._directory / "server.conf")],
                cwd=self._data or self._directory,
                # A server that is told of a locale which is not installed refuses to start.
                env={**os.environ, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # The server holds the lock too: it stands until the last process that may write the data is gone.
                pass_fds=() if self._lock is None else (self._lock,),
            )

    def look(self) -> dict[str, Any]:
        return {"exited": self._process.poll() if self._process else 0}

    def stop(self) -> dict[str, Any]:
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self._grace_s)
        return self.kill()

    def kill(self) -> dict[str, Any]:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        return self.look()


class InUse(Exception):
    """Another server keeps the lock. The message is who has it."""


def lock(path: Path, wait_s: float) -> int:
    """A descriptor that holds the lock on `path`. Raises InUse where somebody else keeps it for `wait_s`.

    The file says who has it: the process that owns the server.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    give_up_at = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up_at:
                owner = os.read(descriptor, 32).decode(errors="replace").strip()
                os.close(descriptor)
                raise InUse(f"the server of process {owner}" if owner.isdigit() else "another server") from None
            time.sleep(0.01)
        else:
            os.truncate(descriptor, 0)
            os.write(descriptor, f"{os.getppid()}\n".encode())
            return descriptor


def quoted(value: str) -> str:
    """One argument, as the server's configuration file writes it."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def scratch_root() -> str | None:
    """Where the scratch directory goes: the usual place, or /tmp where that is too deep for a Unix socket."""
    longest = Path(tempfile.gettempdir(), "tokentape-12345678", "server.sock")
    return None if len(os.fsencode(longest)) <= MAX_SOCKET_PATH else "/tmp"  # noqa: S108 - mkdtemp makes the name


def main() -> None:
    """Serve the owner on descriptor 0 until it is gone."""
    os.umask(0o077)  # prompts and answers stand in the data, the password in the configuration
    owner = socket.socket(fileno=0)

    def finish(_number: int, _frame: FrameType | None) -> None:
        # As if the owner were gone. Raising here instead could cut a start or the clean-up in two.
        with contextlib.suppress(OSError):
            owner.shutdown(socket.SHUT_RDWR)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, finish)
    with (
        tempfile.TemporaryDirectory(prefix="tokentape-", dir=scratch_root(), ignore_cleanup_errors=True) as directory,
        contextlib.suppress(ConnectionError),  # the owner died in the middle of a conversation
        owner.makefile("r", encoding="utf-8") as orders,
    ):
        serve(owner, orders, Path(directory))


def serve(owner: socket.socket, orders: TextIO, directory: Path) -> None:
    arrangement = orders.readline()
    if not arrangement:
        return
    server = Server(json.loads(arrangement), directory)
    actions = {"start": server.start, "look": server.look, "stop": server.stop, "kill": server.kill}
    try:
        for order in orders:
            owner.sendall(json.dumps(actions[json.loads(order)["do"]]()).encode() + b"\n")
    finally:
        server.stop()


if __name__ == "__main__":
    main()
