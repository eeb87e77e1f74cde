"""Lines that failed are asked again, and stand once in the files, whenever the run that asks is killed."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from tokentape.job import derive_job_id
from tokentape.simulator import expected_text

from .conftest import BatchStack, batch_line, body, read_lines, wait_until, write_lines

GOOD = body("good")
MENDS = body("mends", fault="status", status=400, fault_times=1)
FAILS = body("fails", fault="status", status=400)


def standing(stack: BatchStack) -> dict[str, int | None]:
    """The status of each line by its custom_id, over both files. Each stands there once."""
    lines = [*read_lines(stack.out), *read_lines(stack.errors)]
    status = {line["custom_id"]: (line["response"] or {}).get("status_code") for line in lines}
    assert len(status) == len(lines), lines
    return status


def start(stack: BatchStack) -> None:
    """A first run, in which two of three lines fail."""
    write_lines(stack.input, [batch_line("good", GOOD), batch_line("mends", MENDS), batch_line("fails", FAILS)])
    stack.worker()
    code, summary, _ = stack.run("--batch-id", "b")
    assert (code, summary["completed"], summary["failed"]) == (1, 1, 2)


def test_failed_lines_are_asked_again_and_their_new_answers_stand_for_the_old(stack: BatchStack) -> None:
    start(stack)

    code, summary, said = stack.run("--batch-id", "b", "--retry-failed")

    assert (code, summary["completed"], summary["failed"], summary["answered_before"]) == (1, 2, 1, 1), said
    assert standing(stack) == {"good": 200, "mends": 200, "fails": 400}
    assert [stack.simulator.calls(one) for one in (GOOD, MENDS, FAILS)] == [1, 2, 2]
    (error,) = read_lines(stack.errors)
    assert error["id"].endswith("_000003_2")
    assert error["response"]["request_id"] == derive_job_id("batch:b", "b:3:2")
    answer = read_lines(stack.out)[1]["response"]["body"]["choices"][0]["message"]["content"]
    assert answer == expected_text(MENDS)


def test_each_run_that_is_to_asks_again_and_no_other(stack: BatchStack) -> None:
    start(stack)

    codes = [stack.run("--batch-id", "b", *more)[0] for more in (["--retry-failed"], [], ["--retry-failed"], [])]

    assert codes == [1, 1, 1, 1]
    assert standing(stack) == {"good": 200, "mends": 200, "fails": 400}
    assert [stack.simulator.calls(one) for one in (GOOD, MENDS, FAILS)] == [1, 2, 3]


def test_nothing_is_asked_again_where_nothing_has_failed(stack: BatchStack) -> None:
    write_lines(stack.input, [batch_line("good", GOOD)])
    stack.worker()
    stack.run()

    code, _, said = stack.tell("--retry-failed", TOKENTAPE_REDIS_URL="redis://127.0.0.1:1/0")

    assert code == 0
    assert said.startswith("Nothing to do: 1 of 1 lines answered")


def test_lines_that_expired_get_a_new_window(stack: BatchStack) -> None:
    write_lines(stack.input, [batch_line("good", GOOD)])
    stack.run("--timeout", "1")
    assert standing(stack) == {"good": None}
    record = stack.out.with_name("out.jsonl.batch")
    record.write_text(json.dumps({**json.loads(record.read_text()), "started_at": 0.0}))
    stack.worker()

    code, summary, _ = stack.run("--retry-failed")

    assert (code, summary["completed"], summary["expired"]) == (0, 1, 0)
    assert standing(stack) == {"good": 200}


def test_cancelled_line_is_asked_again(stack: BatchStack) -> None:
    write_lines(stack.input, [batch_line("good", GOOD)])
    command, client = stack.command("--batch-id", "b"), stack.client()
    wait_until(lambda: client.overview().open)
    client.cancel(derive_job_id("batch:b", "b:1"))
    assert command.wait(timeout=60) == 1
    stack.worker()

    code, _, _ = stack.run("--batch-id", "b", "--retry-failed")

    assert code == 0
    assert standing(stack) == {"good": 200}


#: Kills the command at a moment that it is told, named after what has just been done.
KILLED_AT = """
import os, signal, sys
from tokentape.cli import main
from tokentape_producer import batch, output_files

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def dies_after(function):
    return lambda *arguments: (function(*arguments), die())

moment = sys.argv[1]
if moment == "files opened":
    batch.Batch.run = die
elif moment == "lines submitted":
    batch.Batch._collect = die
elif moment == "half an answer written":
    write = output_files.ResultFile.write
    output_files.ResultFile.write = lambda self, line: (write(self, line[:30]), die())
elif moment == "an answer written":
    output_files.ResultFile.write = dies_after(output_files.ResultFile.write)
elif moment == "all answers written":
    output_files.OutputFiles.tidy = die
elif moment == "errors half written anew":
    become = output_files.ResultFile.become
    def half(self, *arguments):
        self.write = dies_after(self.write)
        become(self, *arguments)
    output_files.ResultFile.become = half
elif moment == "errors written anew":
    os.replace = die
elif moment == "errors in their place":
    os.replace = dies_after(os.replace)
main(sys.argv[2:])
"""

MOMENTS = {
    "files opened": 0,
    "lines submitted": 0,
    "half an answer written": 0,
    # What has failed again by then is asked once more by the next run.
    "an answer written": 1,
    "all answers written": 1,
    "errors half written anew": 1,
    "errors written anew": 1,
    "errors in their place": 1,
}


def kill_at(stack: BatchStack, moment: str) -> None:
    arguments = ["batch", "run", str(stack.input), "--out", str(stack.out), "--batch-id", "b", "--retry-failed"]
    command = stack.process(["-c", KILLED_AT, moment, *arguments])
    _, said = command.communicate(timeout=60)
    assert command.returncode == -signal.SIGKILL, said


@pytest.mark.parametrize("moment", MOMENTS)
def test_run_that_is_killed_while_it_asks_again_goes_on(stack: BatchStack, moment: str) -> None:
    start(stack)

    kill_at(stack, moment)
    code, summary, said = stack.run("--batch-id", "b", "--retry-failed")

    assert (code, summary["completed"], summary["failed"]) == (1, 2, 1), said
    assert standing(stack) == {"good": 200, "mends": 200, "fails": 400}
    assert [stack.simulator.calls(one) for one in (GOOD, MENDS)] == [1, 2]
    assert 2 <= stack.simulator.calls(FAILS) <= 2 + MOMENTS[moment]
    assert [path.name for path in stack.folder.glob("*.new")] == []


@pytest.mark.parametrize("moment", MOMENTS)
def test_run_that_does_not_ask_again_tidies_up_after_one_that_was_killed(stack: BatchStack, moment: str) -> None:
    start(stack)

    kill_at(stack, moment)
    code, summary, said = stack.run("--batch-id", "b")

    assert code == 1, said
    assert standing(stack).keys() == {"good", "mends", "fails"}
    assert summary["completed"] == len(read_lines(stack.out))
    assert summary["failed"] == len(read_lines(stack.errors))


@pytest.mark.parametrize("kept", ["out", "errors"])
def test_line_that_stands_twice_and_was_asked_once_is_not_taken_for_a_retry(stack: BatchStack, kept: str) -> None:
    start(stack)
    path: Any = getattr(stack, kept)
    before = path.read_bytes()
    path.write_bytes(before + before)

    code, error = stack.refused("--batch-id", "b", "--retry-failed")

    assert code == 2
    assert "answered twice" in error["message"]
    assert path.read_bytes() == before + before
