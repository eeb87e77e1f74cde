"""Following one tape: what a follower keeps in mind between reads, and what it makes of the entries.

A reader checks that entries are dense, and that its attempt still stands: a failover may have lost the tail of the
tape, and a new attempt may have been given the same number. Another token, or none, means that it starts over from the
first entry. It looks with each page, in the same round trip, and before it accepts what the hub may have read from
another server than its last page. That a connection was lost is not always told: a pool that finds an idle one closed
opens another without a word, and a client that was given to us may repeat what failed.

A cursor beyond the last entry waits for the tape to pass it. An end that stands before it says that nothing will: a
reader that had read further starts over then, and one whose cursor came from outside is told when its wait is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from .chunk import ChatCompletionChunk
from .errors import Restarted
from .operations import PAGE, Ask, Operations, Steps, failure
from .scripts import Command
from .tape import START, AttemptData, EndData, Entry, Position, Tape, check_follows, check_head, decode_entry, rows_of

OnRestart = Literal["raise", "skip"] | Callable[[Restarted], object]


class Reader:
    """One follower's place on a tape. `ended` once it has passed the last entry.

    `seen`: we have just read the entry at `after` ourselves, so that a tape that lacks it has lost it.
    """

    def __init__(
        self, operations: Operations, job_id: str, after: str | bytes | Position, *, seen: bool = False
    ) -> None:
        self.tape = operations.tape(job_id)
        self.position = Position.parse(after)
        self._given = None if seen else self.position
        self.ended = False
        #: The id of the end, where that stands before a cursor that came from outside.
        self.missed_end: str | None = None
        self.behind = True
        self._operations = operations
        self._attempt: bytes | None = None
        self._doubt = False
        #: Whether the first entry, which tells the format, is among those to come, or was looked at.
        self._head_seen = self.position == START

    def doubt(self) -> None:
        """Trouble came while a page was read."""
        self._doubt = True

    @property
    def in_doubt(self) -> bool:
        """Whether trouble came since the last page was begun: then it is to be read again, from the mark before it."""
        return self._doubt

    def mark(self) -> tuple[Position, bytes | None]:
        """Where the reader stands, to rewind to."""
        return self.position, self._attempt

    def rewind(self, mark: tuple[Position, bytes | None]) -> None:
        self.position, self._attempt = mark
        self.ended = False

    def catch_up(self) -> Steps[list[Entry]]:
        """The next page of entries. Raises JobNotFound, CorruptTape."""
        self._doubt = False
        rows = yield from self._page()
        if not rows:
            # Two asks, so that the common case is one: nothing new, nothing more to come, or no tape at all?
            last = yield from self._operations.last(self.tape)
            self.ended = last.kind == "end" and last.position == self.position
            if last.kind == "end" and last.position < self.position:
                if self.position == self._given:
                    self.missed_end = last.id
                else:
                    self._start_over()
                    rows = yield from self._operations.page(self.tape, self.position)
        self.behind = len(rows) == PAGE
        return self.accept(decode_entry(self.tape.job_id, row) for row in rows)

    def accept(self, entries: Iterable[Entry]) -> list[Entry]:
        """Entries that follow the position, checked. Those that stand before it are passed over."""
        accepted = []
        for entry in entries:
            if entry.position <= self.position:
                continue
            check_follows(self.position, entry)
            self.position = entry.position
            if entry.kind == "attempt":
                self._attempt = entry.raw
            self.ended = entry.kind == "end"
            accepted.append(entry)
        return accepted

    def confirm(self) -> Steps[bool]:
        """Whether the attempt that the position is in still stands. False: drop what came, `catch_up` starts over."""
        if not self.position.attempt:
            return True
        (rows,) = yield Ask("tape", [self._beginning()])
        return self._stands(rows)

    def _page(self) -> Steps[list[tuple[Any, Any]]]:
        """The rows after the position; after the start, where the attempt stands no more."""
        if self.position != START:
            # On one connection, and so from one server.
            head = [] if self._head_seen else [self.tape.first()]
            begun, rows, *first = yield Ask("tape", [self._beginning(), self.tape.page(self.position, PAGE), *head])
            for found in first:
                check_head(self.tape.job_id, found)
                self._head_seen = True
            if self._stands(begun):
                return rows_of(rows)
            self._start_over()
        return (yield from self._operations.page(self.tape, self.position))

    def _start_over(self) -> None:
        self.position, self._attempt = START, None

    def _beginning(self) -> Command:
        return self.tape.at(Position(self.position.attempt, 0))

    def _stands(self, rows: Any) -> bool:
        """Whether what stands where the attempt began is what stood there before."""
        raw = decode_entry(self.tape.job_id, rows[0]).raw if rows else None
        if self._attempt is not None and raw != self._attempt:
            return False
        self._attempt = raw
        return True


def newest_attempt(operations: Operations, at: Tape) -> Steps[Position]:
    """Where the newest attempt's chunks begin; the start of the tape where none has begun. Raises JobNotFound."""
    last = yield from operations.last(at)
    attempt = last.data.attempts if isinstance(last.data, EndData) else last.position.attempt
    return Position(attempt, 0) if attempt else START


class TextPieces:
    """From entries to pieces of one choice's text; says so when an attempt starts over."""

    def __init__(self, job_id: str, choice: int, on_restart: OnRestart) -> None:
        self._job_id = job_id
        self._choice = choice
        self._on_restart = on_restart
        self._said = False

    def of(self, entry: Entry) -> str:
        """The text that an entry adds, often "". Raises Restarted, JobFailed, JobCancelled, JobExpired."""
        data: Any = entry.data
        if isinstance(data, ChatCompletionChunk):
            texts = [c.delta.content for c in data.choices if c.index == self._choice and c.delta.content]
            text = "".join(texts)
            self._said = self._said or bool(text)
            return text
        if isinstance(data, AttemptData) and self._said:
            self._said = False
            restarted = Restarted(self._job_id, entry.position.attempt, data.reason)
            if self._on_restart == "raise":
                raise restarted
            if callable(self._on_restart):
                self._on_restart(restarted)
        if isinstance(data, EndData) and data.status != "completed":
            raise failure(self._job_id, data)
        return ""
