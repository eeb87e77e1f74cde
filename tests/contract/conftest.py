"""Servers for the contract: the same suites run on every one of them.

`valkey` is the embedded server. Where TOKENTAPE_TEST_REDIS_SERVER names a program, the suites run on that one too, as
`redis`. `fakeredis` is held to the same contract, so that applications may test against it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import fakeredis
import pytest
import redis

from tests.contract.bench import Bench, QueueBench, TapeBench, chat_job
from tokentape import queue, tape
from tokentape.connection import Server
from tokentape.embedded import EmbeddedServer
from tokentape_worker import ownership

#: Every script, as a process that is client and worker at once would load them.
SCRIPTS = (*tape.SCRIPTS, *queue.SCRIPTS, *ownership.SCRIPTS)

REAL = ["valkey", "redis"] if os.environ.get("TOKENTAPE_TEST_REDIS_SERVER") else ["valkey"]


@pytest.fixture(scope="session")
def bundled_valkey(server_binary: Path | None, request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """The embedded server, also where the other tests run on another program."""
    if server_binary is None:
        yield request.getfixturevalue("valkey")
        return
    with EmbeddedServer() as server:
        yield server


@pytest.fixture(params=["fakeredis", *REAL])
def server(request: pytest.FixtureRequest, namespace: str) -> Iterator[Bench]:
    """A server of each kind, with a namespace of its own."""
    kind = request.param
    if kind == "fakeredis":
        client: redis.Redis = fakeredis.FakeRedis(server=fakeredis.FakeServer())
    else:
        running: EmbeddedServer = request.getfixturevalue("bundled_valkey" if kind == "valkey" else "valkey")
        client = redis.Redis.from_url(running.url)
    with client:
        yield Bench(kind, client, Server(client, SCRIPTS), namespace)


@pytest.fixture(params=REAL)
def full_server(request: pytest.FixtureRequest, namespace: str) -> Iterator[tuple[Bench, Callable[[], None]]]:
    """A real server of its own, and what fills its memory up. fakeredis has no such limit."""
    binary = request.getfixturevalue("server_binary") if request.param == "redis" else None
    with EmbeddedServer(binary=binary) as running, redis.Redis.from_url(running.url) as client:
        bench = Bench(request.param, client, Server(client, SCRIPTS), namespace)
        yield bench, lambda: client.config_set("maxmemory", 1)


@pytest.fixture
def tape_of_job(server: Bench) -> TapeBench:
    """The address of a tape that nobody has submitted yet."""
    return TapeBench(server, chat_job())


@pytest.fixture
def queue_side(server: Bench) -> QueueBench:
    return QueueBench(server)
