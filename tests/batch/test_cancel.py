"""What a run has left under way is cancelled, and its lines stand once in the files."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
import redis

from tokentape.job import derive_job_id
from tokentape.tape import Tape

from .conftest import BatchStack, body, read_lines, wait_until, write_lines


def cancel(stack: BatchStack) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """-> exit code, what stood on stdout, the error"""
    code, out, err = stack.main("batch", "cancel", str(stack.input), "--out", str(stack.out), "--json")
    return code, json.loads(out or "{}"), json.loads(err)["error"] if err else {}


def interrupt(stack: BatchStack, *options: str, under_way: list[str]) -> None:
    """A run that is interrupted once the jobs of these keys are there."""
    command = stack.command("--batch-id", "b", *options)
    tapes = [Tape(stack.namespace, derive_job_id("batch:b", key)).key for key in under_way]
    with redis.Redis.from_url(stack.url) as control:
        wait_until(lambda: control.exists(*tapes) == len(tapes))
    command.send_signal(signal.SIGINT)
    assert command.wait(timeout=60) == 130


def codes(stack: BatchStack) -> dict[str, str | None]:
    """Of each line that stands in the errors."""
    return {line["custom_id"]: (line["error"] or {}).get("code") for line in read_lines(stack.errors)}


def test_what_is_under_way_is_cancelled_and_the_rest_is_left_to_the_next_run(stack: BatchStack) -> None:
    write_lines(stack.input, [body(f"{n}") for n in range(5)])
    interrupt(stack, "--window", "3", under_way=["b:1", "b:2", "b:3"])

    code, said, _ = cancel(stack)
    again = cancel(stack)[1]
    stack.worker()
    its_code, summary, _ = stack.run("--batch-id", "b")

    assert (code, said["cancelled"], said["had_ended"]) == (0, 3, 0)
    assert again["cancelled"] == 0
    assert codes(stack) == {f"line-{n:06d}": "batch_cancelled" for n in (1, 2, 3)}
    assert (its_code, summary["completed"], summary["cancelled"]) == (1, 2, 3)
    assert stack.simulator.calls() == 2


def test_answers_that_had_come_are_written_down(stack: BatchStack) -> None:
    write_lines(stack.input, [body("1"), body("2", first_token_ms=3_600_000)])
    interrupt(stack, under_way=["b:1", "b:2"])
    client = stack.client()
    stack.worker()
    wait_until(lambda: client.status(derive_job_id("batch:b", "b:1")).status == "completed")

    code, said, _ = cancel(stack)

    assert (code, said["cancelled"], said["had_ended"]) == (0, 1, 1)
    assert [line["custom_id"] for line in read_lines(stack.out)] == ["line-000001"]
    assert codes(stack) == {"line-000002": "batch_cancelled"}
    wait_until(lambda: client.overview().open == 0)


def test_what_is_asked_again_is_cancelled_too(stack: BatchStack) -> None:
    write_lines(stack.input, [body("1"), body("2")])
    interrupt(stack, under_way=["b:1", "b:2"])
    cancel(stack)
    interrupt(stack, "--retry-failed", under_way=["b:1:2", "b:2:2"])

    code, said, _ = cancel(stack)

    assert (code, said["cancelled"]) == (0, 2)
    assert codes(stack) == {"line-000001": "batch_cancelled", "line-000002": "batch_cancelled"}
    assert len(read_lines(stack.errors)) == 2


def test_run_that_is_not_interrupted_is_left_alone(stack: BatchStack) -> None:
    write_lines(stack.input, [body("1")])
    stack.command("--batch-id", "b")
    client = stack.client()
    wait_until(lambda: client.overview().open)

    code, _, error = cancel(stack)

    assert code == 2
    assert "is being written by another run" in error["message"]
    assert client.status(derive_job_id("batch:b", "b:1")).status == "queued"


@pytest.mark.parametrize("run", [True, False])
def test_batch_that_was_not_run_is_refused(stack: BatchStack, run: bool) -> None:
    write_lines(stack.input, [body("1")])
    if run:
        interrupt(stack, under_way=["b:1"])
        write_lines(stack.input, [body("2")])

    code, _, error = cancel(stack)

    assert code == 2
    assert ("another content" if run else "no batch was run") in error["message"]
