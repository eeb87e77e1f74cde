"""Whether a worker is alive, told to whoever supervises it: a file for probes, and systemd's own notices.

    python -P -m tokentape_worker.health live     exit code 0 while the event loop turns: otherwise restart it
    python -P -m tokentape_worker.health ready    exit code 0 while it also holds its lease, and so takes jobs

The event loop itself writes the file that TOKENTAPE_HEALTH_FILE names, each second, so that a loop that is wedged falls
silent. `live` asks nothing of the server: a worker keeps its streams through an outage, and to restart all workers
for one would lose them. `ready` is what a rolling update waits for: a worker that joined, and does not stop.

The time in the file is the machine's monotonic clock, which no correction of the time moves, and which another process
on the machine reads the same. One file is one process's; a probe runs on the same machine, in the same container.

This module imports little, so that a probe costs a start of Python and nothing more.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

EVERY_S: Final = 1.0
#: Older than this, the loop hangs. A lease is lost sooner, and the jobs are elsewhere then.
STALE_S: Final = 15.0
FILE_VARIABLE: Final = "TOKENTAPE_HEALTH_FILE"


class Health:
    """Says how a worker is. `notices` is the address of systemd's socket."""

    def __init__(self, file: Path | None, notices: str | None) -> None:
        self._file = file
        self._notices = notices
        self._said = ""

    @classmethod
    def of(cls, file: Path | None, environ: Mapping[str, str]) -> Health:
        return cls(file, environ.get("NOTIFY_SOCKET"))

    @property
    def wanted(self) -> bool:
        """Whether anybody is to be told."""
        return bool(self._file or self._notices)

    def tell(self, *, ready: bool, stopping: bool) -> None:
        """Say it now. Raises OSError where the file or the socket cannot be written; the next time may succeed."""
        try:
            if self._notices:
                self._notify(self._notices, "STOPPING=1" if stopping else "READY=1" if ready else "")
        finally:
            if self._file is not None:
                _replace(self._file, json.dumps({"at_s": time.monotonic(), "pid": os.getpid(), "ready": ready}))

    def _notify(self, socket_path: str, state: str) -> None:
        """systemd's protocol: see sd_notify(3). A state is said once, where it is new."""
        news = [state] if state not in ("", self._said) else []
        address = f"\0{socket_path[1:]}" if socket_path.startswith("@") else socket_path
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.setblocking(False)
            line.sendto("\n".join([*news, "WATCHDOG=1"]).encode(), address)
        self._said = state or self._said


def _replace(file: Path, text: str) -> None:
    """Write a file so that a reader sees the former text or this one."""
    new = file.with_name(f"{file.name}.{os.getpid()}")
    new.write_text(text)
    new.replace(file)


def verdict(file: Path, question: str, now_s: float) -> str | None:
    """What is wrong with the worker that writes this file; None where nothing is. `question`: live or ready."""
    try:
        said = json.loads(file.read_text())
        age_s = now_s - float(said["at_s"])
        ready = bool(said["ready"])
    except OSError as error:
        return f"{file} cannot be read ({error.strerror}): no worker has started here"
    except (ValueError, TypeError, KeyError):
        return f"{file} was not written by a worker"
    if not 0 <= age_s <= STALE_S:  # below 0: written before the machine was started anew
        return f"the worker has been silent for longer than {STALE_S:g} s"
    if question == "ready" and not ready:
        return "the worker holds no lease, or stops"
    return None


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """-> 0 fine, 1 not so, 2 wrong usage"""
    if len(arguments) != 1 or arguments[0] not in ("live", "ready") or not environ.get(FILE_VARIABLE):
        sys.stderr.write(f"usage: python -P -m tokentape_worker.health live|ready, with {FILE_VARIABLE} set\n")
        return 2
    wrong = verdict(Path(environ[FILE_VARIABLE]), arguments[0], time.monotonic())
    if wrong is not None:
        sys.stderr.write(f"{wrong}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
