"""A file for log lines that holds nobody up and fails nobody.

A log's reader may stand still (`| less`, a shipper that hangs), and a write to a full pipe blocks; it may leave
(`| tee`, which got the same Ctrl-C), and a write fails. An event loop that is held up there loses its lease, hears no
signal and restarts nothing, and an error in the middle of a stop leaves it undone. So lines are handed to a thread.
Where it does not keep up, they wait up to a bound; beyond it they are dropped, and how many is told in their place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
from collections.abc import Callable
from typing import IO, Final

#: What waits for a reader at most.
LIMIT_BYTES: Final = 1024 * 1024
#: For what is left to be written at the end.
CLOSE_WAIT_S: Final = 2.0
#: A pipe without a reader, a terminal that hung up, a descriptor that was closed.
_NOBODY_READS: Final = (errno.EPIPE, errno.EIO, errno.EBADF)


def _dropped(count: int) -> str:
    return f"{count} lines of the log were dropped here: nobody read them\n"


class LogWriter:
    """Takes lines for `file`, from any thread, and writes them to its descriptor. `close` it at the end.

    `when_gone` is called once, on the thread, when the reader has gone; what is written after that goes nowhere.
    `told`: the line that tells of so many dropped ones. A file without a descriptor, as tests have, is written at once.
    """

    def __init__(self, file: IO[str], *, limit_bytes: int = LIMIT_BYTES, told: Callable[[int], str] = _dropped) -> None:
        self.when_gone: Callable[[], None] = lambda: None
        self._file = file
        self._limit_bytes = limit_bytes
        self._told = told
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        self._bytes = 0
        self._dropped = 0
        self._closing = False
        self._gone = False
        self._thread: threading.Thread | None = None
        with contextlib.suppress(OSError):  # io.UnsupportedOperation is one
            self._descriptor = file.fileno()
            self._thread = threading.Thread(target=self._run, name="log", daemon=True)
            self._thread.start()

    def isatty(self) -> bool:
        return self._file.isatty()

    def write(self, text: str) -> int:
        """Take whole lines. Never blocks, never raises."""
        if self._gone:
            return len(text)
        if self._thread is None:
            self._write_through(text)
            return len(text)
        with self._changed:
            if self._bytes > self._limit_bytes:
                self._dropped += text.count("\n")
            else:
                self._tell_of_dropped()
                self._add(text)
                self._changed.notify()
        return len(text)

    def flush(self) -> None:
        """Nothing to do: the thread writes as soon as it can."""

    def close(self, wait_s: float = CLOSE_WAIT_S) -> None:
        """Write what waits, for as long as that. Safe to repeat; what is written later is lost."""
        with self._changed:
            self._tell_of_dropped()
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(wait_s)

    def _tell_of_dropped(self) -> None:
        if self._dropped:
            self._add(self._told(self._dropped))
            self._dropped = 0

    def _add(self, text: str) -> None:
        line = text.encode("utf-8", "backslashreplace")
        self._waiting.append(line)
        self._bytes += len(line)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    return
                data = b"".join(self._waiting)
                self._waiting.clear()
            trouble = self._write_out(data)
            with self._changed:
                self._bytes -= len(data)
                self._dropped += data.count(b"\n") if trouble else 0

    def _write_out(self, data: bytes) -> bool:
        """-> whether it could not be written, and may be the next time: a disk that is full may have room again"""
        # Not through the file's own buffer: its lock, held by a write that blocks, would abort the interpreter's end.
        rest = memoryview(data)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:  # whoever shares the descriptor has made it so
                    select.select([], [self._descriptor], [])
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                return True
            self._go()
        return False

    def _write_through(self, text: str) -> None:
        try:
            self._file.write(text)
            self._file.flush()
        except (OSError, ValueError):  # ValueError: closed
            self._go()

    def _go(self) -> None:
        first, self._gone = not self._gone, True
        if first:
            self.when_gone()
