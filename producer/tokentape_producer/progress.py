"""How far a batch is, on standard error: a bar on a terminal, a plain line now and then elsewhere, or nothing.

A display is an Observer of the run. The rate is that of the last minute, so that it, and the time left, say how it goes
now; a resumed run does not take credit for what stood there already.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TextIO

from .batch import Counts

if TYPE_CHECKING:
    from rich.progress import Progress

#: How far back the rate looks.
_RATE_SPAN_S: Final = 60.0
#: Between two samples of the rate.
_SAMPLE_EVERY_S: Final = 0.5
#: Between two plain lines.
_LINE_EVERY_S: Final = 5.0
#: The same note is not written again for this long.
_NOTE_EVERY_S: Final = 60.0


class Rate:
    """Lines answered per second, lately. `now` is any clock in seconds that does not go backwards."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, answered: int, now: float) -> None:
        """Tell how many are answered now."""
        if self._samples and now - self._samples[-1][0] < _SAMPLE_EVERY_S:
            return
        self._samples.append((now, answered))
        while now - self._samples[0][0] > _RATE_SPAN_S:
            self._samples.popleft()

    def per_s(self) -> float | None:
        """None until it can be told."""
        if len(self._samples) < 2:
            return None
        (began, first), (now, last) = self._samples[0], self._samples[-1]
        return (last - first) / (now - began)

    def left_s(self, lines: int) -> float | None:
        """How long so many lines will take; None where nothing moves or nothing is known."""
        per_s = self.per_s()
        return lines / per_s if per_s else None


class Display:
    """What the command shows of a run: this one, nothing. Leaving the context leaves the terminal in order."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def checking(self, done_bytes: int, of_bytes: int) -> None:
        """How far the check of the input is."""

    def counted(self, counts: Counts) -> None:
        """See batch.Observer."""

    def noted(self, text: str) -> None:
        """See batch.Observer."""


class _Notes:
    """Says each note once a minute."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._said: dict[str, float] = {}

    def due(self, text: str) -> bool:
        now = self._clock()
        if now - self._said.get(text, -_NOTE_EVERY_S) < _NOTE_EVERY_S:
            return False
        self._said[text] = now
        return True


class PlainLines(Display):
    """One line every few seconds, for logs."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._rate = Rate()
        self._notes = _Notes(clock)
        self._next_at = clock() + _LINE_EVERY_S

    def checking(self, done_bytes: int, of_bytes: int) -> None:
        if self._due():
            self._say(f"checking the input: {100 * done_bytes // max(1, of_bytes)}%")

    def counted(self, counts: Counts) -> None:
        self._rate.add(counts.answered, self._clock())
        if self._due():
            self._say(describe(counts, self._rate))

    def noted(self, text: str) -> None:
        if self._notes.due(text):
            self._say(text)

    def _due(self) -> bool:
        now = self._clock()
        if now < self._next_at:
            return False
        self._next_at = now + _LINE_EVERY_S
        return True

    def _say(self, text: str) -> None:
        say(text, self._stream)


class Bar(Display):
    """A bar with counts, rate and time left. Needs rich: raises ImportError without it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console  # noqa: PLC0415 - an extra, and only a terminal wants it
        from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

        self._clock = clock
        self._rate = Rate()
        self._notes = _Notes(clock)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[state]}"))
        self._progress: Progress = Progress(*columns, console=Console(stderr=True), expand=True)
        self._task = self._progress.add_task("checking", total=None, state="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()

    def checking(self, done_bytes: int, of_bytes: int) -> None:
        self._progress.update(self._task, completed=done_bytes, total=of_bytes)

    def counted(self, counts: Counts) -> None:
        self._rate.add(counts.answered, self._clock())
        state = describe(counts, self._rate)
        self._progress.update(
            self._task, description="running", completed=counts.answered, total=counts.total, state=state
        )

    def noted(self, text: str) -> None:
        if self._notes.due(text):
            self._progress.console.print(text, highlight=False, markup=False)


def say(text: str, stream: TextIO) -> None:
    """Write a line for whoever reads. A reader that has gone, or a full disk, is no reason to end a run."""
    with contextlib.suppress(OSError):
        print(text, file=stream, flush=True)


def display(*, wanted: bool, lines: bool = True, stream: TextIO | None = None) -> Display:
    """The display that fits: a bar where standard error is a terminal and rich is installed, else plain lines.

    Without `lines` it is a bar or nothing: nobody parses a terminal.
    """
    stream = stream or sys.stderr
    if wanted and stream.isatty():
        try:
            return Bar()
        except ImportError:
            pass
    return PlainLines(stream) if wanted and lines else Display()


def describe(counts: Counts, rate: Rate) -> str:
    """`1,234 of 2,000 answered, 3 failed, 410/s, 0:02 left`"""
    parts = [f"{counts.answered:,} of {counts.total:,} answered"]
    parts += [f"{n:,} {name}" for name in ("failed", "cancelled", "expired") if (n := getattr(counts, name))]
    if (per_s := rate.per_s()) is not None:
        parts.append(f"{per_s:,.0f}/s" if per_s >= 10 else f"{per_s:.1f}/s")
    if (left_s := rate.left_s(counts.total - counts.answered)) is not None and counts.answered < counts.total:
        parts.append(f"{clock_time(left_s)} left")
    return ", ".join(parts)


def clock_time(seconds: float) -> str:
    """`0:07`, `12:34` or `3:25:45`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
