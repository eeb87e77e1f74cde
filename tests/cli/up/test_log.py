"""The log of `tokentape up`: one for all processes, with colours where they are wanted."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys

import pytest

from ..conftest import Environment, command
from .conftest import WAIT_S, Start, tokentape

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]


def test_each_line_is_tagged_and_has_no_colour_in_a_file(start: Start, terminal: Environment) -> None:
    up = start("--workers", "2").ready()
    tokentape(terminal, "submit", "--follow", "Hi")
    up.signal(signal.SIGTERM)

    up.finish()

    assert up.said("job ended")
    line = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ  (up|worker-1|worker-2) +\S.*\n")
    assert all(line.fullmatch(one) for one in up.log)


@pytest.mark.parametrize("no_color", ["", "1"])
def test_on_a_terminal_there_are_colours_unless_nobody_wants_them(
    terminal: Environment, elsewhere: Environment, no_color: str
) -> None:
    ours, theirs = pty.openpty()
    environment = {**terminal, **elsewhere, "NO_COLOR": no_color, "TERM": "xterm"}
    with subprocess.Popen(command("up"), env=environment, stderr=theirs, stdout=subprocess.DEVNULL) as process:
        try:
            os.close(theirs)
            said = b""
            while b"worker ready" not in said:
                said += os.read(ours, 4096)
        finally:
            process.terminate()
            rest = read_to_end(ours)
            process.wait(timeout=WAIT_S)

    assert (b"\x1b[" in said + rest) is not bool(no_color)


def read_to_end(descriptor: int) -> bytes:
    said = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
        while data := os.read(descriptor, 4096):
            said += data
    os.close(descriptor)
    return said
