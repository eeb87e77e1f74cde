"""The one log of several processes: what they write, line by line, each line tagged with who wrote it.

    10:42:07  worker-1   job ended  job_id=job_3f… status=completed …

Services write JSON, one object a line, where nobody reads along (see their `log_format`), so that it is put into one
form here, with one clock and one set of colours. What is no JSON object, as a traceback, passes as it is. Control
characters do not: an upstream's words may stand in an error, and must not steer the terminal.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import IO, Any, Final

import click

from .log_writer import LogWriter
from .printable import printable

LEVELS: Final = ("debug", "info", "warning", "error")
#: The name in front of lines of our own.
OURS: Final = "up"

_TAG_CELLS: Final = 9
_TAG_COLOURS: Final = ("cyan", "green", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")
_LEVEL_COLOURS: Final = {"debug": "bright_black", "warning": "yellow", "error": "red", "critical": "red"}
#: Said by every line, and told in another way here.
_HANDLED: Final = ("timestamp", "level", "event", "process", "exception")


def wants_colours(file: IO[str], environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a file is a terminal that shows colours, and nobody has asked for none (NO_COLOR)."""
    return file.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


class ProcessLog:
    """Writes to one file, see log_writer.py. `level`: what is below it, of our own lines, is left out; children leave
    out theirs. `close` it at the end.
    """

    def __init__(self, file: IO[str], *, as_json: bool = False, colours: bool = False, level: str = "info") -> None:
        self.writer = LogWriter(file, told=self._told)
        self._as_json = as_json
        self._colours = colours
        self._from = LEVELS.index(level)
        self._terminal = file.isatty()
        self._tags: dict[str, str] = {}

    def say(self, event: str, *, process: str = OURS, level: str = "info", **facts: Any) -> None:
        """A line of our own, or what a process means by what it wrote."""
        if event.strip() and LEVELS.index(level) >= self._from:
            self._put({"process": process, "timestamp": _now(), "level": level, "event": event, **facts})

    def add(self, process: str, line: str, level: str = "info") -> None:
        """A line that a process wrote, without its end. `level` counts where the line does not say."""
        if not line.strip():
            return
        record = _object(line)
        if (message := error_message(line)) is not None:
            record = {"timestamp": _now(), "level": "error", "event": message}
        elif record is None or "event" not in record:
            record = {"timestamp": _now(), "level": level, "event": line.rstrip()}
        self._put({**record, "process": process})

    def close(self) -> None:
        """Write what is left, where somebody reads it. Safe to repeat."""
        self.writer.close()

    def _put(self, record: dict[str, Any]) -> None:
        self.writer.write(self._lines(record))

    def _told(self, count: int) -> str:
        event = f"{count} lines were dropped here: nobody read the log"
        return self._lines({"process": OURS, "timestamp": _now(), "level": "warning", "event": event})

    def _lines(self, record: dict[str, Any]) -> str:
        lines = [json.dumps(record, ensure_ascii=False)] if self._as_json else self._text(record)
        return "".join(f"{line}\n" for line in lines)

    def _text(self, record: Mapping[str, Any]) -> Iterator[str]:
        level = str(record.get("level", "info"))
        head = f"{self._moment(record.get('timestamp'))}  {self._tag(str(record['process']))}"
        told = {name: it for name, it in record.items() if it is not None and name not in _HANDLED}
        facts = " ".join(f"{printable(name)}={_value(it)}" for name, it in told.items())
        event = printable(str(record.get("event", "")))
        if level not in ("info", "debug"):
            event = f"{level}: {event}"
        event = self._style(event, _LEVEL_COLOURS.get(level))
        yield f"{head}  {event}{'  ' + facts if facts else ''}"
        for line in str(record.get("exception", "")).splitlines():
            yield f"{head}    {printable(line)}"

    def _tag(self, process: str) -> str:
        if process not in self._tags:
            colour = None if process == OURS else _TAG_COLOURS[len(self._tags) % len(_TAG_COLOURS)]
            self._tags[process] = self._style(printable(process).ljust(_TAG_CELLS), colour)
        return self._tags[process]

    def _moment(self, timestamp: object) -> str:
        """On a terminal the time here; in a file, which may be read later and elsewhere, the whole of it, in UTC."""
        moment = datetime.now(UTC)
        with contextlib.suppress(ValueError):
            moment = datetime.fromisoformat(str(timestamp))
        return f"{moment.astimezone():%H:%M:%S}" if self._terminal else f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"

    def _style(self, text: str, colour: str | None) -> str:
        return click.style(text, fg=colour) if self._colours and colour else text


def error_message(line: str) -> str | None:
    """The message of an error as commands tell it with --json; None for any other line."""
    record = _object(line) or {}
    error = record.get("error")
    if "event" in record or not isinstance(error, dict) or "message" not in error:
        return None
    return str(error["message"])


def _object(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _value(value: object) -> str:
    """As it is where that is one word; in quotes elsewhere."""
    if isinstance(value, list):
        return ",".join(map(_value, value))
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 1e6 else str(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    bare = text and text.isprintable() and not any(char in text for char in ' "=')
    return text if bare else printable(json.dumps(text, ensure_ascii=False))


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat()
