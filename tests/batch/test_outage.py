"""A server that goes away, or has no room, in the middle of a batch. Each test has a server of its own to trouble."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tokentape.embedded import EmbeddedServer
from tokentape.job import derive_job_id
from tokentape.simulator import SimulatorThread, expected_text
from tokentape.tape import Tape

from .conftest import BatchStack, body, read_lines, wait_until, write_lines


@pytest.fixture
def server(server_binary: Path | None, tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(data=tmp_path / "data", binary=server_binary, config={"appendfsync": "always"}) as server:
        yield server


@pytest.fixture
def own_stack(server: EmbeddedServer, namespace: str, tmp_path: Path) -> Iterator[BatchStack]:
    with contextlib.ExitStack() as close:
        yield BatchStack(server.url, close.enter_context(SimulatorThread()), namespace, tmp_path, close)


@pytest.mark.slow
def test_outage_is_waited_out(own_stack: BatchStack, server: EmbeddedServer) -> None:
    requests = [body(f"{n}", interval_ms=20) for n in range(60)]
    write_lines(own_stack.input, requests)
    command = own_stack.command("--window", "10")
    own_stack.worker(TOKENTAPE_CONCURRENCY="5")
    wait_until(lambda: own_stack.out.exists() and own_stack.out.read_bytes().count(b"\n") >= 10)

    server.restart()
    _, said = command.communicate(timeout=90)

    assert command.returncode == 0, said
    lines = read_lines(own_stack.out)
    assert sorted(line["custom_id"] for line in lines) == [f"line-{n:06d}" for n in range(1, 61)]
    answers = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}
    assert answers == {f"line-{n:06d}": expected_text(one) for n, one in enumerate(requests, 1)}


def wait_until_said(command: subprocess.Popen[bytes], words: bytes) -> None:
    """Read what a command says until it says this. One that ends without it fails the test."""
    assert command.stderr is not None
    said = []
    for line in command.stderr:
        said.append(line)
        if words in line:
            return
    pytest.fail(f"it ended, and had said: {said}")


def lose_job(stack: BatchStack, pipe: redis.Redis, line: int) -> None:
    """What belongs to a line's job is gone, so that it is to be submitted again."""
    tape = Tape(stack.namespace, derive_job_id("batch:b", f"b:{line}"))
    pipe.delete(tape.key, tape.request_key)


@pytest.mark.parametrize(
    ("trouble", "mended", "words"),
    [
        (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"], b"memory is full"),
        (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"], b"is a read-only replica"),
    ],
    ids=["full", "replica"],
)
def test_server_that_takes_no_jobs_in_the_middle_is_waited_for(
    own_stack: BatchStack, server: EmbeddedServer, trouble: list[str], mended: list[str], words: bytes
) -> None:
    write_lines(own_stack.input, [body("1"), body("2")])
    command, client = own_stack.command("--batch-id", "b", TOKENTAPE_REDIS_WAIT_S="0.01"), own_stack.client()
    wait_until(lambda: client.overview().open == 2)
    with redis.Redis.from_url(server.url) as control:
        with control.pipeline(transaction=True) as together:
            lose_job(own_stack, together, line=1)
            together.execute_command(*trouble)
            together.execute()
        wait_until_said(command, words)
        control.execute_command(*mended)
    own_stack.worker()
    _, said = command.communicate(timeout=60)

    assert command.returncode == 0, said
    assert len(read_lines(own_stack.out)) == 2


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (["CONFIG", "SET", "maxmemory", "1"], "Redis has no memory left: "),
        (["REPLICAOF", "127.0.0.1", "1"], "Redis is a read-only replica here; "),
        (["CONFIG", "SET", "requirepass", "s3cret"], "Redis refuses the login: "),
    ],
    ids=["full", "replica", "login"],
)
def test_server_that_takes_no_jobs_at_the_start_is_told_as_what_it_is(
    own_stack: BatchStack, server: EmbeddedServer, trouble: list[str], words: str
) -> None:
    write_lines(own_stack.input, [body("1")])
    with redis.Redis.from_url(server.url) as control:
        control.execute_command(*trouble)

    code, error = own_stack.refused(TOKENTAPE_REDIS_WAIT_S="0.2")
    _, _, said = own_stack.tell(TOKENTAPE_REDIS_WAIT_S="0.2")

    assert code == 5
    assert error["message"].startswith(words)
    assert said.splitlines()[-1] == f"error: {error['message']}"
    assert ("trying again" in said) == ("replica" in words)
    assert [path.name for path in own_stack.folder.glob("*.jsonl*")] == ["in.jsonl"]
