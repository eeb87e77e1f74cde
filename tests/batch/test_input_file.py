"""The input as a whole: checked before anything is enqueued, and read again as it was checked."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tokentape_producer import input_file, lines
from tokentape_producer.input_file import BadInput, Checked, InputFile

from .conftest import batch_line, body, write_lines

FIRST, SECOND = batch_line("a", body("1")), batch_line("b", body("2"))


def check(path: Path) -> Checked:
    with InputFile(path) as source:
        return source.check()


def bad_lines(path: Path) -> list[tuple[int, str | None]]:
    with pytest.raises(BadInput) as caught:
        check(path)
    assert "nothing was enqueued" in str(caught.value)
    return [(line.number, line.field) for line in caught.value.lines]


def test_blank_lines_are_counted_and_skipped(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [FIRST, "", "  \t", body("plain")])

    with InputFile(path) as source:
        checked = source.check()
        read = [(line.number, line.custom_id) for _, _, line in source.lines(checked, bytearray(5))]

    assert checked.requests == 2
    assert read == [(1, "a"), (4, "line-000004")]


def test_byte_order_mark_carriage_returns_and_an_open_last_line_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{json.dumps(FIRST)}\r\n{json.dumps(SECOND)}".encode())

    with InputFile(path) as source:
        checked = source.check()
        read = list(source.lines(checked, bytearray(3)))
        again = [source.line_at(checked, line.number, offset) for offset, _, line in read]

    assert [line.custom_id for line in again] == ["a", "b"]
    assert again == [line for _, _, line in read]


def test_every_bad_line_is_counted_and_the_first_ones_are_named(tmp_path: Path) -> None:
    good = [batch_line(f"good {n}", body("x")) for n in range(3)]
    path = write_lines(tmp_path / "in.jsonl", [good[0], "{", good[1], *[{"model": "m"}] * 20, good[2]])

    with pytest.raises(BadInput, match="21 bad lines") as caught:
        check(path)

    assert [line.number for line in caught.value.lines] == [2, *range(4, 13)]
    assert "the first is line 2: not JSON" in str(caught.value)
    listing = caught.value.listing()
    assert (len(listing), listing[-1]) == (11, "  … and 11 more")
    assert caught.value.bad_lines[0] == {
        "code": "invalid_json_line",
        "message": caught.value.lines[0].message,
        "param": None,
        "line": 2,
    }


def test_only_bad_line_stands_in_the_message(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [FIRST, {"model": "m"}])

    with pytest.raises(BadInput, match=r"line 2: messages: .*; nothing was enqueued") as caught:
        check(path)

    assert caught.value.listing() == []


def test_repeated_custom_id_is_named_with_the_line_that_had_it_first(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [FIRST, SECOND, "", FIRST, FIRST])

    with pytest.raises(BadInput, match="'a' is the custom_id of line 1 too") as caught:
        check(path)

    assert [(line.number, line.code) for line in caught.value.lines] == [
        (4, "duplicate_custom_id"),
        (5, "duplicate_custom_id"),
    ]


def test_custom_id_that_a_plain_body_gets_may_not_stand_twice_either(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [batch_line("line-000002", body("x")), body("y")])

    assert bad_lines(path) == [(2, "custom_id")]


def test_custom_ids_that_only_look_equal_are_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_file, "_HASH_BITS", 0)
    path = write_lines(tmp_path / "in.jsonl", [FIRST, SECOND])

    assert check(path).requests == 2


def test_file_of_nothing_but_one_custom_id_is_counted_in_full(tmp_path: Path) -> None:
    many = [batch_line(f"{n % 300}", body("x")) for n in range(900)]
    path = write_lines(tmp_path / "in.jsonl", many)

    with pytest.raises(BadInput, match="600 bad lines"):
        check(path)


def test_line_that_is_too_long_is_named_and_what_follows_keeps_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(input_file, "MAX_LINE_BYTES", 1000)
    path = write_lines(tmp_path / "in.jsonl", [FIRST, body("x" * 5000), "{"])

    assert bad_lines(path) == [(2, None), (3, None)]


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_file_without_a_line_to_run_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(content)

    with pytest.raises(BadInput, match="no line to run"):
        check(path)


def test_what_cannot_be_read_twice_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    writer = os.open(tmp_path / "fifo", os.O_RDWR)

    with pytest.raises(BadInput, match="standard input"):
        InputFile(Path("-"))
    with pytest.raises(BadInput, match="not a regular file"):
        InputFile(tmp_path / "fifo")
    with pytest.raises(BadInput, match="cannot be read"):
        InputFile(tmp_path / "missing")

    os.close(writer)


@pytest.mark.parametrize(
    ("content", "number"),
    [([FIRST, batch_line("b", body("3"))], 2), ([FIRST], 2), ([FIRST, SECOND, FIRST], 3)],
    ids=["another line", "a line less", "a line more"],
)
def test_file_that_changes_after_the_check_is_noticed(tmp_path: Path, content: list[Any], number: int) -> None:
    path = write_lines(tmp_path / "in.jsonl", [FIRST, SECOND])

    with InputFile(path) as source:
        checked = source.check()
        write_lines(path, content)

        with pytest.raises(BadInput, match=re.escape(f"line {number} is not what was checked")):
            list(source.lines(checked, bytearray(3)))
