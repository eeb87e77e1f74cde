"""A batch whose command and whose worker are killed, again and again: each line is answered once, and exactly."""

from __future__ import annotations

import pytest

from tokentape.simulator import expected_text

from .conftest import BatchStack, batch_line, body, read_lines, wait_until, write_lines

LINES = 2000
CONCURRENCY = 64


def wait_until_answered(stack: BatchStack, lines: int) -> None:
    wait_until(lambda: stack.out.exists() and stack.out.read_bytes().count(b"\n") >= lines)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_command_and_worker_leave_each_line_answered_once(stack: BatchStack) -> None:
    requests = {f"request {n}": body(f"hello {n}", chunks=4, interval_ms=10) for n in range(LINES)}
    write_lines(stack.input, [batch_line(name, one) for name, one in requests.items()])

    worker = stack.worker(TOKENTAPE_CONCURRENCY=str(CONCURRENCY))
    for answered in (200, 900):
        command = stack.command("--window", "300")
        wait_until_answered(stack, answered)
        worker.kill()
        worker.wait()
        worker = stack.worker(TOKENTAPE_CONCURRENCY=str(CONCURRENCY))
        wait_until_answered(stack, answered + 300)
        command.kill()
        command.wait()
        with stack.out.open("ab") as out:
            out.write(b'{"id":"batch_req_')  # what a kill in the middle of a write leaves
    code, summary, said = stack.run("--window", "300")

    assert (code, summary["completed"]) == (0, LINES), said
    lines = read_lines(stack.out)
    assert len(lines) == LINES
    answers = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}
    assert answers == {name: expected_text(one) for name, one in requests.items()}
    assert stack.errors.read_bytes() == b""
    # Only what a killed worker had under way is paid for again.
    assert LINES <= stack.simulator.calls() <= LINES + 2 * CONCURRENCY
