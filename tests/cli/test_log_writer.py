"""Lines for a log: whoever writes them is neither held up nor failed."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Iterator
from typing import IO

import pytest

from tokentape.log_writer import LogWriter

from .conftest import wait_until

#: More than a pipe holds.
MUCH = 200_000


class Pipe:
    """A pipe: the end that is written to, and what a reader gets."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        self.file: IO[str] = os.fdopen(writer, "w")

    def read_rest(self) -> str:
        """Close the end that is written to, and read what is in it."""
        self.file.close()
        with os.fdopen(self.reader) as reader:
            return reader.read()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.file.close()


def test_lines_come_out_in_order(pipe: Pipe) -> None:
    writer = LogWriter(pipe.file)

    for number in range(100):
        writer.write(f"line {number}\n")
    writer.close()

    assert pipe.read_rest() == "".join(f"line {number}\n" for number in range(100))


def test_a_descriptor_that_does_not_block_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.file.fileno(), False)
    writer = LogWriter(pipe.file, limit_bytes=10 * MUCH)
    for number in range(MUCH // 10):
        writer.write(f"{number:09}\n")
    got = b""
    while len(got) < MUCH:
        got += os.read(pipe.reader, 65536)
    writer.close(30)
    os.close(pipe.reader)

    assert got.decode().splitlines() == [f"{number:09}" for number in range(MUCH // 10)]


def test_half_a_character_is_no_error(pipe: Pipe) -> None:
    writer = LogWriter(pipe.file)

    writer.write("\ud83d \u2713\n")
    writer.close()

    assert pipe.read_rest() == "\\ud83d \u2713\n"


def test_a_reader_that_stands_still_holds_nobody_up_and_is_told_what_it_missed(pipe: Pipe) -> None:
    writer = LogWriter(pipe.file, limit_bytes=MUCH, told=lambda count: f"missed {count}\n")
    got: list[bytes] = []

    def read_to_end() -> None:
        while data := os.read(pipe.reader, 65536):
            got.append(data)

    for number in range(2 * MUCH // 10):
        writer.write(f"{number:09}\n")
    slow = threading.Thread(target=read_to_end)
    slow.start()
    wait_until(lambda: sum(map(len, got)) > MUCH)  # there is room again
    writer.write("at last\n")
    writer.close(30)
    pipe.file.close()
    slow.join()
    os.close(pipe.reader)

    *numbers, missed, last = b"".join(got).decode().splitlines()
    assert numbers == [f"{number:09}" for number in range(len(numbers))]
    assert missed == f"missed {2 * MUCH // 10 - len(numbers)}"
    assert last == "at last"


def test_a_reader_that_stands_still_does_not_hold_up_the_end(pipe: Pipe) -> None:
    writer = LogWriter(pipe.file)
    writer.write("x" * MUCH)

    writer.close(0.01)

    assert os.read(pipe.reader, 1) == b"x"
    os.close(pipe.reader)


def test_a_reader_that_leaves_is_told_of_once(pipe: Pipe) -> None:
    told: list[str] = []
    writer = LogWriter(pipe.file)
    writer.when_gone = lambda: told.append("gone")
    os.close(pipe.reader)

    writer.write("one\n")
    wait_until(lambda: told)
    writer.write("two\n")
    writer.close()

    assert told == ["gone"]


def test_a_full_disk_loses_lines_and_nothing_else(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    really, full = os.write, threading.Event()
    full.set()
    refused: list[bytes] = []

    def write(descriptor: int, data: bytes) -> int:
        if full.is_set() and descriptor == pipe.file.fileno():
            refused.append(bytes(data))
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    writer = LogWriter(pipe.file, told=lambda count: f"missed {count}\n")
    writer.when_gone = lambda: pytest.fail("the reader is there")
    writer.write("lost\n")
    wait_until(lambda: refused)
    full.clear()

    writer.write("kept\n")
    writer.close()

    assert pipe.read_rest() in ("missed 1\nkept\n", "kept\nmissed 1\n")  # whether the thread had counted it yet


class Closed(io.StringIO):
    def write(self, _text: str) -> int:
        raise BrokenPipeError


def test_a_file_without_a_descriptor_is_written_at_once() -> None:
    kept, closed, told = io.StringIO(), Closed(), []
    writer, no_reader = LogWriter(kept), LogWriter(closed)
    no_reader.when_gone = lambda: told.append("gone")

    writer.write("now\n")
    for _ in range(2):
        no_reader.write("nowhere\n")

    assert kept.getvalue() == "now\n"
    assert told == ["gone"]
