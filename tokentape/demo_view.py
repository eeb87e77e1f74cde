"""What the demo shows: streams side by side on a terminal, plain lines elsewhere, and at the end the answers."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .tables import columns

if TYPE_CHECKING:
    from .demo import Stream

_LABEL_CELLS: Final = 28
_QUESTION_CELLS: Final = 72
_ANSWER_CELLS: Final = 96
_LINE_CELLS: Final = 60


class View:
    """Writes to one file. On a terminal the streams that run are drawn over and over while `showing` lasts."""

    def __init__(self, file: IO[str]) -> None:
        self._console = Console(file=file, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._streams: Sequence[Stream] = ()
        self._started = time.monotonic()

    def note(self, text: str) -> None:
        """Something happened."""
        self._line(f"[{time.monotonic() - self._started:5.1f} s] {text}")

    def ended(self, stream: Stream) -> None:
        """A job has ended. On a terminal its row goes away, which says enough."""
        if not self._live:
            status = stream.end.status if stream.end else "?"
            said = head(stream.fault or stream.fold.text(), _LINE_CELLS)
            self.note(f"#{stream.number} {status}, {stream.chunks} chunks, attempt {stream.attempt}: {said}")

    @contextmanager
    def showing(self, streams: Sequence[Stream]) -> Iterator[None]:
        """While the answers come."""
        self._streams = streams
        if not self._live:
            yield
            return
        with Live(
            console=self._console, get_renderable=self._picture, refresh_per_second=12, transient=True, screen=False
        ):
            yield

    def report(self, streams: Sequence[Stream], facts: Mapping[str, Any]) -> None:
        """The assembled answers, and the run in numbers."""
        self._line("")
        for stream in streams:
            again = f", attempt {stream.attempt}" if stream.attempt > 1 else ""
            mark = "exact" if stream.fault is None else f"NOT EXACT ({plain(stream.fault)})"
            self._line(f"#{stream.number} {mark}{again}: {head(stream.question, _QUESTION_CELLS)}")
            self._line(f"   {head(stream.fold.text(), _ANSWER_CELLS)}")
        self._line("")
        self._line(columns(_numbers(facts)))

    def _line(self, text: str) -> None:
        # Not through the console's own writing, which would drop what it takes for markup or wrap what is long.
        self._console.print(Text(text), soft_wrap=True)
        self._console.file.flush()

    def _picture(self) -> RenderableType:
        streams = self._streams
        ended = sum(stream.end is not None for stream in streams)
        chunks = sum(stream.chunks for stream in streams)
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            Text(f"{ended} of {len(streams)} jobs"),
            ProgressBar(total=len(streams), completed=ended, width=40),
            Text(f"{chunks} chunks, {time.monotonic() - self._started:.1f} s"),
        )
        rows = Table.grid(padding=(0, 1))
        room = max(10, self._console.width - _LABEL_CELLS - 8)
        for stream in streams:
            if stream.running:
                style = "yellow" if stream.attempt > 1 else ""
                question = Text(head(stream.question, _LABEL_CELLS), style="dim", no_wrap=True)
                said = Text(tail(stream.fold.text(), room), style=style, no_wrap=True)
                rows.add_row(Text(f"#{stream.number:<3}"), question, said)
        whole = Table.grid()
        whole.add_row(rows)
        whole.add_row(bar)
        return whole


def _numbers(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("jobs", f"{facts['jobs']} in {facts['seconds']:.1f} s"),
        ("chunks", f"{facts['chunks']}, {facts['chunks_per_s']:.0f} a second"),
    ]
    if first := facts["first_chunk_ms"]:
        rows.append(("first chunk", f"median {first['median']:.0f} ms, worst {first['worst']:.0f} ms after the claim"))
    if facts["worker_killed"]:
        rows.append(("worker killed", f"{facts['attempts_restarted']} attempts restarted"))
    if again := facts["ran_again_after_s"]:
        rows.append(("ran again", f"{again['first']:.1f} to {again['last']:.1f} s after the kill"))
    rows += [("results", facts["results"]), ("exact answers", f"{facts['exact']} of {facts['jobs']}")]
    return rows


def plain(text: str) -> str:
    """A model's text on one line, without what would steer a terminal."""
    return " ".join("".join(" " if unicodedata.category(char) == "Cc" else char for char in text).split())


def head(text: str, cells: int) -> str:
    """The beginning, as much as fits. Wide characters take two cells."""
    line = plain(text)
    return line if cell_len(line) <= cells else set_cell_size(line, cells - 1).rstrip() + "…"


def tail(text: str, cells: int) -> str:
    """The end, as much as fits."""
    line = plain(text[-4 * cells :])
    while cell_len(line) > cells:
        line = line[max(1, (cell_len(line) - cells) // 2) :]
    return line
