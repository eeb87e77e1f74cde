"""Result files: their lines, their lock, their record, and how they are read back."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tokentape import ErrorInfo
from tokentape_producer.output_files import (
    BatchConflict,
    BatchRecord,
    OutputFiles,
    OutputUnwritable,
    ResultFile,
    default_errors,
    new_record,
)
from tokentape_producer.results import Answered, ResultLines

JOB = "job_" + "0" * 32
COMPLETION = b'{"object":"chat.completion","choices":[]}'


def open_files(folder: Path, **changes: Any) -> OutputFiles:
    out, errors = folder / "out.jsonl", folder / "out.errors.jsonl"
    made = new_record(out, errors, batch_id="b1", input_sha256="aa", upstream=None, model=None)
    return OutputFiles(out, errors, BatchRecord(**{**made.model_dump(), **changes}))


def test_completed_line_has_the_shape_of_openais_output() -> None:
    line = ResultLines("b1").completed(3, "käse\n", JOB, b'{\n "object": "chat.completion"\n}')

    value = json.loads(line)
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert value.pop("id").startswith("batch_req_")
    assert value == {
        "custom_id": "käse\n",
        "response": {"status_code": 200, "request_id": JOB, "body": {"object": "chat.completion"}},
        "error": None,
    }


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ErrorInfo(type="invalid_request", message="no", upstream_status=422, code="bad"), 422),
        (ErrorInfo(type="rate_limited", message="no"), 429),
        (ErrorInfo(type="timeout", message="no", upstream_status=200), 504),
        (ErrorInfo(type="worker_lost", message="no"), 500),
    ],
)
def test_failed_line_looks_like_an_http_failure(error: ErrorInfo, status: int) -> None:
    value = json.loads(ResultLines("b1").failed(3, "a", JOB, error))

    assert value["error"] is None
    assert value["response"] == {
        "status_code": status,
        "request_id": JOB,
        "body": {"error": {"message": "no", "type": error.type, "param": None, "code": error.code}},
    }


def test_line_that_was_not_executed_has_no_response() -> None:
    lines = ResultLines("b1")

    values = [json.loads(line) for line in (lines.expired(1, "a"), lines.cancelled(2, "b", None), lines.lost(3, "c"))]

    assert [value["response"] for value in values] == [None] * 3
    assert [value["error"]["code"] for value in values] == ["batch_expired", "batch_cancelled", "job_lost"]
    assert all(value["error"]["message"] for value in values)


def test_half_a_surrogate_pair_in_an_upstreams_message_stays_an_escape() -> None:
    error = ErrorInfo(type="upstream_error", message="x")

    line = ResultLines("b1").failed(1, "a", JOB, error.model_copy(update={"message": "\ud800"}))

    assert json.loads(line)["response"]["body"]["error"]["message"] == "\ud800"


def test_what_was_written_is_read_back_by_line_number(tmp_path: Path) -> None:
    with open_files(tmp_path) as files:
        files.out.write(files.lines.completed(2_000_000, "a", JOB, COMPLETION))
        files.errors.write(files.lines.failed(1, "b", JOB, ErrorInfo(type="timeout", message="")))
        files.errors.write(files.lines.expired(3, "c"))
        files.errors.write(files.lines.cancelled(4, "d", None))

    with open_files(tmp_path) as files:
        answered = list(files.read_back())

    assert answered == [
        Answered(2_000_000, "completed"),
        Answered(1, "failed"),
        Answered(3, "expired"),
        Answered(4, "cancelled"),
    ]


def test_result_line_says_which_time_of_asking_it_answers(tmp_path: Path) -> None:
    error = ErrorInfo(type="timeout", message="")
    with open_files(tmp_path) as files:
        files.out.write(files.lines.completed(1, "a", JOB, COMPLETION, asked=2))
        files.errors.write(files.lines.failed(2, "b", JOB, error, asked=1))
        files.errors.write(files.lines.failed(2, "b", JOB, error, asked=13))
        files.errors.write(files.lines.lost(3, "c", asked=4))
        files.errors.write(files.lines.cancelled(4, "d", None, asked=5))
        files.errors.write(files.lines.expired(5, "e", asked=6))
        ids = [json.loads(line)["id"] for line in files.errors.lines()]
        answered = [(one.number, one.asked) for one in files.read_back()]

    assert answered == [(1, 2), (2, 1), (2, 13), (3, 4), (4, 5), (5, 6)]
    assert len(set(ids)) == len(ids)
    assert not ids[0].endswith("_1")


def test_answers_that_are_outdated_are_removed_and_the_file_stays_locked_and_as_it_was(tmp_path: Path) -> None:
    errors = tmp_path / "out.errors.jsonl"
    (tmp_path / "elsewhere").touch(mode=0o640)
    errors.symlink_to("elsewhere")
    with open_files(tmp_path) as files:
        for asked in (1, 2):
            files.errors.write(files.lines.expired(1, "a", asked=asked))
            files.errors.write(files.lines.expired(2, "b", asked=asked))

        files.tidy(lambda one: one.asked == 2)
        files.errors.write(files.lines.expired(3, "c"))

        assert [(one.number, one.asked) for one in files.read_back()] == [(1, 2), (2, 2), (3, 1)]
        with pytest.raises(BatchConflict, match="another run"):
            open_files(tmp_path)
    assert errors.is_symlink()
    assert stat.S_IMODE(errors.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "elsewhere",
        "out.errors.jsonl",
        "out.jsonl",
        "out.jsonl.batch",
    ]


def test_errors_that_cannot_be_written_anew_stay_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "out.errors.jsonl.new").mkdir()
    with open_files(tmp_path) as files:
        files.errors.write(files.lines.expired(1, "a"))

        with pytest.raises(OutputUnwritable, match="cannot be opened"):
            files.tidy(lambda _: False)

        assert [one.number for one in files.read_back()] == [1]


@pytest.mark.parametrize("kept", [0, 1, 2])
@pytest.mark.parametrize("torn", [b"{", b"x" * 200_000])
def test_torn_last_line_is_cut_off(tmp_path: Path, kept: int, torn: bytes) -> None:
    with open_files(tmp_path) as files:
        for number in range(1, kept + 1):
            files.out.write(files.lines.completed(number, f"{number}", JOB, COMPLETION))
        whole = files.out.size
        files.out.write(torn)

    with open_files(tmp_path) as files:
        answered = list(files.read_back())

        assert [one.number for one in answered] == list(range(1, kept + 1))
        assert files.out.size == whole


def test_second_run_is_refused_while_the_first_has_the_files(tmp_path: Path) -> None:
    with open_files(tmp_path), pytest.raises(BatchConflict, match="another run"):
        open_files(tmp_path)

    open_files(tmp_path).close()


def test_file_that_is_removed_while_it_is_being_locked_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock

    def remove_and_lock(descriptor: int, operation: int) -> None:
        (tmp_path / "out.jsonl").unlink()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_and_lock)

    with pytest.raises(BatchConflict, match="another run"):
        open_files(tmp_path)


def test_nothing_is_left_of_a_batch_that_is_withdrawn(tmp_path: Path) -> None:
    (tmp_path / "out.errors.jsonl").touch()
    with open_files(tmp_path) as files:
        files.withdraw()

    assert [path.name for path in tmp_path.iterdir()] == ["out.errors.jsonl"]


@pytest.mark.parametrize("resumed", [True, False])
def test_files_that_an_earlier_run_has_begun_or_that_hold_something_are_not_withdrawn(
    tmp_path: Path, resumed: bool
) -> None:
    if resumed:
        open_files(tmp_path).close()

    with open_files(tmp_path) as files:
        if not resumed:
            files.errors.write(files.lines.expired(3, "c"))
        files.withdraw()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.errors.jsonl", "out.jsonl", "out.jsonl.batch"]


def test_errors_file_that_another_batch_writes_is_refused(tmp_path: Path) -> None:
    errors = tmp_path / "out.errors.jsonl"
    record = new_record(tmp_path / "2.jsonl", errors, batch_id="b2", input_sha256="bb", upstream=None, model=None)

    with open_files(tmp_path), pytest.raises(BatchConflict, match="another run"):
        OutputFiles(tmp_path / "2.jsonl", errors, record)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"input_sha256": "bb", "batch_id": "b2"}, "another content"),
        ({"upstream": "other", "batch_id": "b2"}, "batch id was 'b1'"),
        ({"upstream": "other"}, "upstream was None"),
        ({"model": "other"}, "model was None"),
        ({"errors": "elsewhere"}, "errors was 'out.errors.jsonl'"),
    ],
)
def test_files_of_another_batch_are_left_alone(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    open_files(tmp_path).close()
    before = (tmp_path / "out.jsonl.batch").read_bytes()

    with pytest.raises(BatchConflict, match=word):
        open_files(tmp_path, **changes)

    assert (tmp_path / "out.jsonl.batch").read_bytes() == before


@pytest.mark.parametrize("name", ["out.jsonl", "out.errors.jsonl"])
def test_file_that_stands_there_without_a_record_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine\n")

    with pytest.raises(BatchConflict, match="stands there already"):
        open_files(tmp_path)

    assert (tmp_path / name).read_text() == "mine\n"


def test_line_that_no_batch_wrote_is_named(tmp_path: Path) -> None:
    open_files(tmp_path).close()
    with (tmp_path / "out.jsonl").open("ab") as file:
        file.write(ResultLines("other").expired(1, "a"))

    with open_files(tmp_path) as files, pytest.raises(BatchConflict, match=r"out\.jsonl: line 1 was not written"):
        list(files.read_back())


def test_first_start_counts_until_the_output_is_gone(tmp_path: Path) -> None:
    with open_files(tmp_path, started_at=5.0) as files:
        first = files.record.started_at
    with open_files(tmp_path, started_at=6.0) as files:
        resumed = files.record.started_at
    for name in ("out.jsonl", "out.errors.jsonl"):
        (tmp_path / name).unlink()
    with open_files(tmp_path, started_at=7.0) as files:
        anew = files.record.started_at

    assert (first, resumed, anew) == (5.0, 5.0, 7.0)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("-", "- is not a file"),
        (".", "not a regular file"),
        ("/", "not a regular file"),
        ("/dev/null", "not a regular file"),
        ("/dev/stdout", "not a regular file"),
        ("/dev/fd/7", "not a regular file"),
        ("/proc/self/fd/1", "not a regular file"),
        ("fifo", "not a regular file"),
        ("loop", "cannot be opened"),
        ("x" * 300, "cannot be opened"),
        ("file/out.jsonl", "cannot be opened"),
        ("no/out.jsonl", "cannot be opened"),
    ],
)
def test_what_cannot_hold_results_is_refused_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    Path("loop").symlink_to("loop")
    Path("file").touch()
    before = sorted(tmp_path.iterdir())
    out, good = Path(name), Path("good.jsonl")
    record = new_record(out, good, batch_id="b", input_sha256="a", upstream=None, model=None)

    with pytest.raises(BatchConflict, match=why):
        OutputFiles(out, default_errors(out), record)
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(BatchConflict, match=why):
        OutputFiles(good, out, record)


def test_stdout_is_no_place_for_results_where_it_is_a_file_either(tmp_path: Path) -> None:
    program = """
from pathlib import Path
from tokentape_producer.output_files import check_place
check_place(Path("/dev/stdout"))
"""

    with (tmp_path / "out.jsonl").open("w") as out:
        done = subprocess.run([sys.executable, "-c", program], stdout=out, stderr=subprocess.PIPE, check=False)

    assert b"BatchConflict: /dev/stdout is not a regular file" in done.stderr


def test_name_that_is_no_text_is_the_same_name_in_the_next_run(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    out, errors = folder / os.fsdecode(b"\xfe.jsonl"), tmp_path / os.fsdecode(b"\xfd")
    record = new_record(out, errors, batch_id="b", input_sha256="a", upstream=None, model=None)

    OutputFiles(out, errors, record).close()

    with OutputFiles(out, errors, record.model_copy(update={"started_at": 0.0})) as files:
        assert files.record == record


def test_errors_stand_beside_the_output_by_default() -> None:
    assert default_errors(Path("a/out.jsonl")) == Path("a/out.errors.jsonl")
    assert default_errors(Path("a/out")) == Path("a/out.errors.jsonl")


def test_a_folder_that_cannot_be_made_durable_leaves_the_file_that_has_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "errors.jsonl"
    file = ResultFile(path)
    for line in (b"a\n", b"b\n"):
        file.write(line)

    def refuse(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("tokentape_producer.output_files._sync_folder", refuse)
    with pytest.raises(OutputUnwritable, match="Input/output error"):
        file.rewrite(lambda line: line == b"b\n")
    file.write(b"c\n")
    file.close()

    assert path.read_bytes() == b"b\nc\n"
