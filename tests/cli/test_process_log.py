"""The one log of `tokentape up`."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest

from tokentape.process_log import ProcessLog, wants_colours

ESCAPE = "\x1b"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def ended(**facts: Any) -> str:
    return json.dumps({"event": "job ended", "level": "info", "timestamp": "2026-01-02T03:04:05.678Z", **facts})


def test_an_error_told_as_json_is_a_line_like_others() -> None:
    file = io.StringIO()

    ProcessLog(file).add("simulator", json.dumps({"error": {"type": "ConfigError", "message": "no port"}}))

    assert re.fullmatch(r"\S+  simulator  error: no port\n", file.getvalue())


def test_a_line_says_when_who_and_what() -> None:
    file = io.StringIO()

    ProcessLog(file).add("worker-1", ended(job_id="job_1", chunks=3, error=None, queues=["a", "b"], why="no luck"))

    assert file.getvalue() == (
        '2026-01-02T03:04:05Z  worker-1   job ended  job_id=job_1 chunks=3 queues=a,b why="no luck"\n'
    )


def test_on_a_terminal_the_time_is_short() -> None:
    file = Terminal()

    ProcessLog(file).add("worker-1", ended())

    assert re.fullmatch(r"\d\d:04:05  worker-1   job ended\n", file.getvalue())


def test_a_warning_says_so_without_colours_too() -> None:
    file = io.StringIO()

    ProcessLog(file).add("worker-1", ended(level="warning"))

    assert "  warning: job ended\n" in file.getvalue()


def test_every_line_of_a_traceback_is_tagged() -> None:
    file = io.StringIO()

    ProcessLog(file).add("worker-1", ended(exception="Traceback:\n  line 1\nValueError: x"))

    lines = file.getvalue().splitlines()
    assert len(lines) == 4
    assert all("  worker-1 " in line for line in lines)
    assert lines[-1].endswith("ValueError: x")


@pytest.mark.parametrize("line", ["plain words", "{not json", '{"no": "event"}', '{"deep":' * 20_000, "[1]"])
def test_what_is_no_record_passes_as_it_is(line: str) -> None:
    file = io.StringIO()

    ProcessLog(file).add("worker-1", line)

    assert file.getvalue().endswith(f"  worker-1   {line}\n")


def test_nothing_steers_the_terminal() -> None:
    file = Terminal()
    log = ProcessLog(file)

    log.add("worker-1", f"{ESCAPE}[2J wiped")
    log.add("worker-1", ended(error=f"{ESCAPE}[2J\x9b2J\u202e\r", **{f"a{ESCAPE}": 1}))

    assert all(char.isprintable() or char == "\n" for char in file.getvalue())


def test_colours_only_where_they_are_asked_for() -> None:
    plain, coloured = Terminal(), Terminal()

    for file, colours in ((plain, False), (coloured, True)):
        ProcessLog(file, colours=colours).add("worker-1", ended(level="error"))

    assert ESCAPE not in plain.getvalue()
    assert ESCAPE in coloured.getvalue()
    assert re.sub(r"\x1b\[\d+m", "", coloured.getvalue()) == plain.getvalue()


@pytest.mark.parametrize(
    ("file", "environ", "wanted"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_who_gets_colours(file: io.StringIO, environ: dict[str, str], wanted: bool) -> None:
    assert wants_colours(file, environ) is wanted


def test_as_json_each_line_is_an_object_with_its_process() -> None:
    file = io.StringIO()
    log = ProcessLog(file, as_json=True)

    log.add("worker-1", ended(chunks=3))
    log.add("worker-1", "plain words")
    log.say("ready", port=1)

    records = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [(one["process"], one["event"], one["level"]) for one in records] == [
        ("worker-1", "job ended", "info"),
        ("worker-1", "plain words", "info"),
        ("up", "ready", "info"),
    ]
    assert records[0]["timestamp"] == "2026-01-02T03:04:05.678Z"
    assert records[2]["port"] == 1


def test_what_is_below_the_level_is_left_out() -> None:
    file = io.StringIO()
    log = ProcessLog(file, level="warning")

    log.say("quiet")
    log.say("loud", level="warning")

    assert "loud" in file.getvalue()
    assert "quiet" not in file.getvalue()
