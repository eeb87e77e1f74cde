"""A server that goes away, or has no room, in the middle of a batch. Each test has a server of its own to trouble."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tokentape.embedded import EmbeddedServer
from tokentape.simulator import SimulatorThread, expected_text

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


def test_server_without_memory_is_asked_again_until_it_has_room(own_stack: BatchStack, server: EmbeddedServer) -> None:
    write_lines(own_stack.input, [body("1"), body("2")])
    with redis.Redis.from_url(server.url) as control:
        control.config_set("maxmemory", "1")
        command = own_stack.command()
        assert command.stderr is not None
        said = command.stderr.readline()
        control.config_set("maxmemory", "0")
    own_stack.worker()

    assert b"memory is full" in said
    assert command.wait(timeout=60) == 0
    assert len(read_lines(own_stack.out)) == 2
