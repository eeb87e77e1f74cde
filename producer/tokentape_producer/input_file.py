"""A batch's input file, read twice from one open descriptor: checked as a whole, then line by line.

Nothing is enqueued before every line was checked. What is kept of a checked line is its CRC-32, four bytes: enough to
know that the second reading finds the line that the first one checked, also where somebody writes into the file in
between. While checking, custom_ids are kept as numbers of 60 bits (64 bytes each, with their place in the set): one
million lines take 64 MB for the time of the check. Where two numbers are equal, the file is read once more to see
whether the custom_ids are, and where the first one stands.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, NamedTuple, Self

from tokentape.errors import InvalidRequest

from .lines import MAX_LINE_BYTES, BadLine, Line, parse_line

#: Bad lines that are reported; the rest are counted.
SHOWN_BAD_LINES: Final = 10

_BOM: Final = b"\xef\xbb\xbf"
#: Keeps a hash within the two digits of a small Python integer: 32 bytes instead of 48.
_HASH_BITS: Final = (1 << 60) - 1
#: Repeated custom_ids that are looked up, so that a file of nothing else takes no memory.
_MOST_SUSPECTED: Final = 100
#: Lines between two calls of a `watch`.
_WATCH_EVERY: Final = 1000


class BadInput(InvalidRequest):
    """The input cannot be run; nothing was enqueued. `lines` are the first bad lines, `count` is how many there are."""

    def __init__(self, message: str, lines: list[BadLine] | None = None, count: int = 0) -> None:
        super().__init__(message)
        self.lines = lines or []
        self.count = count

    @property
    def bad_lines(self) -> list[dict[str, Any]]:
        """The first bad lines, named as OpenAI's batches name what is wrong with one."""
        return [
            {"code": line.code, "message": line.message, "param": line.field, "line": line.number}
            for line in self.lines
        ]

    def listing(self) -> list[str]:
        """The first bad lines for a person; none where the message has named the only one."""
        if self.count < 2:
            return []
        more = self.count - len(self.lines)
        return [*(f"  {line}" for line in self.lines), *([f"  … and {more} more"] if more else [])]


class RawLine(NamedTuple):
    """A line as it stands: its number from 1, where it begins, and its bytes (cut where it is too long)."""

    number: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Checked:
    """A file whose every line was checked. `requests` is how many lines are not blank."""

    sha256: str
    requests: int
    #: CRC-32 of each line, blank ones included, by its number; lines count from 1.
    checksums: array[int]


@dataclass
class _Findings:
    """What the check has found so far."""

    bad: list[BadLine] = field(default_factory=list)
    count: int = 0
    #: custom_ids whose number was seen before, as many as are read once more.
    suspected: set[str] = field(default_factory=set)

    def suspect(self, custom_id: str) -> None:
        if custom_id in self.suspected or len(self.suspected) < _MOST_SUSPECTED:
            self.suspected.add(custom_id)
        else:
            self.count += 1  # among so many, one that only looks equal changes nothing

    def add(self, bad: BadLine) -> None:
        self.count += 1
        self.bad.append(bad)
        self.bad.sort(key=lambda one: one.number)
        del self.bad[SHOWN_BAD_LINES:]


class InputFile:
    """A batch's input. `model` is for bodies that name none. Raises BadInput for what cannot be read twice."""

    def __init__(self, path: Path, *, model: str | None = None) -> None:
        self.path = path
        self._model = model
        if str(path) == "-":
            raise BadInput("a batch is read twice, and again when it is resumed: give a file, not standard input")
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}") from error
        info = os.fstat(self._file.fileno())
        if not stat.S_ISREG(info.st_mode):
            self._file.close()
            raise BadInput(f"{path} is not a regular file: a batch is read twice, and again when it is resumed")
        self.size = info.st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def check(self, watch: Callable[[int], Any] | None = None) -> Checked:
        """Check every line. `watch` is called now and then with the bytes read. Raises BadInput."""
        digest = hashlib.sha256()
        checksums = array("I", (0,))
        seen: set[int] = set()
        findings = _Findings()
        requests = 0
        for raw in self._raw_lines(digest.update):
            checksums.append(zlib.crc32(raw.data))
            if watch is not None and raw.number % _WATCH_EVERY == 0:
                watch(raw.offset)
            if not raw.data.strip():
                continue
            requests += 1
            try:
                line = parse_line(raw.data, raw.number, model=self._model)
            except BadLine as bad:
                findings.add(bad)
                continue
            number = hash(line.custom_id) & _HASH_BITS
            if number in seen:
                findings.suspect(line.custom_id)
            seen.add(number)
        if not requests:
            raise BadInput(f"{self.path} has no line to run", [BadLine(1, "the file is empty", code="empty_file")], 1)
        self._judge_suspected(findings)
        if findings.count:
            raise BadInput(self._report(findings), findings.bad, findings.count)
        return Checked(digest.hexdigest(), requests, checksums)

    def lines(self, checked: Checked, answered: bytearray) -> Iterator[tuple[int, int, Line]]:
        """The lines that are not answered yet, each with its offset and its size in bytes.

        Raises BadInput where the file has changed.
        """
        number = 0
        for raw in self._raw_lines():
            number = raw.number
            if number >= len(checked.checksums):
                raise self._changed(number)
            if not answered[number] and raw.data.strip():
                yield raw.offset, len(raw.data), self._again(checked, raw)
        if number + 1 != len(checked.checksums):
            raise self._changed(number + 1)

    def line_at(self, checked: Checked, number: int, offset: int) -> Line:
        """One line, read again. Raises BadInput where the file has changed. `lines` is not disturbed."""
        position = self._file.tell()
        try:
            self._file.seek(offset)
            return self._again(checked, RawLine(number, offset, _without_bom(self._file.readline(), offset)))
        finally:
            self._file.seek(position)

    def _again(self, checked: Checked, raw: RawLine) -> Line:
        if zlib.crc32(raw.data) != checked.checksums[raw.number]:
            raise self._changed(raw.number)
        return parse_line(raw.data, raw.number, model=self._model)

    def _changed(self, number: int) -> BadInput:
        return BadInput(f"{self.path} was changed while the batch ran: line {number} is not what was checked")

    def _raw_lines(self, digest: Callable[[bytes], None] | None = None) -> Iterator[RawLine]:
        """Every line, in order; never more of one in memory than may be."""
        self._file.seek(0)
        offset = number = 0
        while data := self._file.readline(MAX_LINE_BYTES + 1):
            number += 1
            begins, offset = offset, offset + len(data)
            if digest is not None:
                digest(data)
            kept = data
            while not data.endswith(b"\n") and (data := self._file.readline(MAX_LINE_BYTES)):
                offset += len(data)
                if digest is not None:
                    digest(data)
            yield RawLine(number, begins, _without_bom(kept, begins))

    def _judge_suspected(self, findings: _Findings) -> None:
        """Equal numbers are a suspicion: read again, and compare the custom_ids themselves."""
        if not findings.suspected:
            return
        first: dict[str, int] = {}
        for raw in self._raw_lines():
            if not raw.data.strip():
                continue
            try:
                line = parse_line(raw.data, raw.number, model=self._model)
            except BadLine:
                continue
            if line.custom_id in findings.suspected and first.setdefault(line.custom_id, raw.number) != raw.number:
                message = f"{line.custom_id!r} is the custom_id of line {first[line.custom_id]} too"
                findings.add(BadLine(raw.number, message, field="custom_id", code="duplicate_custom_id"))

    def _report(self, findings: _Findings) -> str:
        if findings.count == 1:
            return f"{self.path}: {findings.bad[0]}; nothing was enqueued"
        return f"{self.path}: {findings.count} bad lines, nothing was enqueued; the first is {findings.bad[0]}"


def _without_bom(data: bytes, offset: int) -> bytes:
    return data.removeprefix(_BOM) if offset == 0 else data
