"""Processes that belong to this one, and end with it.

    python -P -m tokentape.child MODULE [ARGUMENT...]      runs MODULE as `python -P -m MODULE` would

Its standard input is a pipe that nothing is ever written to. The kernel closes the other end when the owner is gone, by
whatever signal, and a thread that waits for that ends the process. So the process that runs is the program itself,
under the pid that the owner knows and may kill, with no supervisor between the two and no change in the program. What
was under way is lost, as in a crash: an owner that wants a good end sends SIGTERM first, which `stop` does.

A child has a process group of its own: Ctrl-C in a terminal is for the owner, which then ends its children.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import IO, Any, Final, Self, cast

from .errors import TokentapeError

#: From SIGTERM to SIGKILL.
STOP_WAIT_S: Final = 5.0
_TAIL_BYTES: Final = 16 * 1024


class ChildFailed(TokentapeError):
    """A process of ours ended, or never began to serve. The message has its last words."""


def command(module: str, *arguments: str) -> list[str]:
    """The command line of a child; its owner gives it a pipe as standard input, and a process group of its own."""
    return [sys.executable, "-P", "-m", "tokentape.child", module, *arguments]


class Child:
    """One running process, for a `with` block or until `stop`.

    `name` is what messages call it. `env` is its whole environment. Its stderr is kept aside, for `last_words`.
    """

    def __init__(self, name: str, module: str, *arguments: str, env: Mapping[str, str]) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self._process = subprocess.Popen(
            command(module, *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=dict(env),
            process_group=0,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_json(self, wait_s: float) -> dict[str, Any]:
        """The JSON object that it prints as its first line once it serves. Raises ChildFailed."""
        give_up_at = time.monotonic() + wait_s
        line = b""
        while not line.endswith(b"\n"):
            piece = self._read(max(0.0, give_up_at - time.monotonic()))
            if piece is None:
                raise ChildFailed(f"{self.name} did not start within {wait_s:g} s{self._quoted()}")
            if not piece:
                self._process.wait()
                self.check()
            line += piece
        facts: dict[str, Any] = json.loads(line)
        return facts

    def check(self) -> None:
        """Raise ChildFailed where it has ended."""
        code = self._process.poll()
        if code is not None:
            raise ChildFailed(f"{self.name} ended (exit code {code}){self._quoted()}")

    def kill(self) -> None:
        """End it as a crash would, and wait for that."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL where that does not end it. Safe to repeat."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_WAIT_S)
        self.kill()
        for end in (self._process.stdin, self._process.stdout, self._errors):
            if end is not None:
                end.close()

    def last_words(self) -> str:
        """The last line of its stderr, or "" where it said nothing."""
        file = self._errors.fileno()
        # pread: the file's position is shared with the child, which may be writing.
        tail = os.pread(file, _TAIL_BYTES, max(0, os.fstat(file).st_size - _TAIL_BYTES))
        lines = tail.decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _quoted(self) -> str:
        words = self.last_words()
        return f": {words}" if words else ""

    def _read(self, wait_s: float) -> bytes | None:
        """What comes first: a piece of its stdout, b"" at the end of it, or None when the time is over."""
        stdout = cast("IO[bytes]", self._process.stdout)  # never None: it was asked for
        return os.read(stdout.fileno(), 4096) if select.select([stdout], [], [], wait_s)[0] else None


def main() -> None:
    """The child's side."""
    threading.Thread(target=_end_with_owner, name="owner", daemon=True).start()
    module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_owner() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
