"""The packed connection: as AsyncServer, whatever the server answers, and whenever it goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis.asyncio
from redis.exceptions import ConnectionError, NoScriptError, OutOfMemoryError, ReadOnlyError, ResponseError

from tokentape import connection, tape
from tokentape.connection import TRANSIENT, AsyncServer, connect_async
from tokentape.embedded import EmbeddedServer
from tokentape.scripts import Command, Script
from tokentape_worker.packed import PackedServer

SCRIPTS = (
    Script("echo", "return ARGV[1]"),
    Script("full", "return redis.error_reply('OOM no memory')", allow_oom=True),
)
ECHO, FULL = SCRIPTS


@pytest.fixture
async def client(valkey: EmbeddedServer) -> AsyncIterator[redis.asyncio.Redis]:
    client = connect_async(valkey.url)
    await client.script_flush()
    yield client
    await client.aclose()


@pytest.fixture
async def packed(client: redis.asyncio.Redis) -> AsyncIterator[PackedServer]:
    server = PackedServer(client, SCRIPTS)
    yield server
    await server.close()


async def test_replies_stand_in_the_order_of_the_commands(packed: PackedServer) -> None:
    replies = await packed.run([("ECHO", str(number)) for number in range(1000)])

    assert replies == [str(number).encode() for number in range(1000)]


async def test_a_reply_of_many_reads_arrives_whole(packed: PackedServer) -> None:
    large = b"x" * 3_000_000

    assert await packed.run([("ECHO", large), ("ECHO", b"after")]) == [large, b"after"]


async def test_commands_answer_as_through_redis_py(packed: PackedServer, client: redis.asyncio.Redis) -> None:
    commands: list[Command] = [
        ("DEL", "packed"), ("XADD", "packed", "1-1", "kind", "chunk", "data", b"\x00\xff{}"), ("XLEN", "packed"),
        ("GET", "packed-none"), ("EXISTS", "packed"), ("NO SUCH COMMAND",),
        ("HSET", "packed", "a", 1), ECHO.call((), 7), ECHO.call((), 1.5), ("DEL", "packed"),
    ]  # fmt: skip

    ours = await packed.run_all(commands)
    theirs = await AsyncServer(client, SCRIPTS).run_all(commands)

    assert [reply if not isinstance(reply, Exception) else type(reply) for reply in ours] == [
        reply if not isinstance(reply, Exception) else type(reply) for reply in theirs
    ]


async def test_scripts_are_loaded_where_they_are_missing(packed: PackedServer, client: redis.asyncio.Redis) -> None:
    assert await packed.run([ECHO.call((), "a")]) == [b"a"]
    await client.script_flush()
    assert await packed.run([ECHO.call((), "b")]) == [b"b"]


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("OOM command not allowed", OutOfMemoryError),
        ("READONLY You can't write", ReadOnlyError),
        ("NOSCRIPT No matching script", NoScriptError),
        ("WRONGTYPE Operation", ResponseError),
    ],
)
async def test_an_error_stands_among_the_replies_in_its_class(
    packed: PackedServer, said: str, kind: type[Exception]
) -> None:
    failing: Command = ("EVAL", "return redis.error_reply(ARGV[1])", 0, said)

    before, error, after = await packed._send([("ECHO", "1"), failing, ("ECHO", "2")], atomic=False)

    assert (before, after) == (b"1", b"2")
    assert type(error) is kind
    assert said.split()[1] in str(error)


async def test_run_raises_the_first_error(packed: PackedServer) -> None:
    with pytest.raises(OutOfMemoryError):
        await packed.run([ECHO.call((), 1), FULL.call(())])


async def test_a_connection_that_was_lost_is_passing_trouble_and_the_next_round_trip_has_another(
    packed: PackedServer, client: redis.asyncio.Redis
) -> None:
    (own,) = await packed.run([("CLIENT", "ID")])
    await client.execute_command("CLIENT", "KILL", "ID", own)

    with pytest.raises(TRANSIENT):
        await packed.run([("ECHO", "lost")])

    assert await packed.run([("ECHO", "found")]) == [b"found"]


async def test_replies_of_a_round_trip_that_was_given_up_reach_nobody_else(packed: PackedServer) -> None:
    await packed.run([("PING",)])

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await packed.run([("ECHO", "theirs"), ("BLPOP", "packed-nothing", 30)])

    assert await packed.run([("ECHO", "mine")]) == [b"mine"]


async def test_a_server_that_says_nothing_is_given_up_as_passing_trouble(
    packed: PackedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await packed.run([("PING",)])
    monkeypatch.setattr(connection, "_SILENCE_S", 0.05)

    with pytest.raises(TRANSIENT):
        await packed.run([("BLPOP", "packed-nothing", 30)])

    monkeypatch.undo()
    assert await packed.run([("ECHO", "found")]) == [b"found"]


async def test_a_server_that_is_not_there_is_passing_trouble(unused_tcp_port: int) -> None:
    packed = PackedServer(connect_async(f"redis://127.0.0.1:{unused_tcp_port}"), tape.SCRIPTS)

    with pytest.raises(ConnectionError):
        await packed.run([("PING",)])

    await packed.close()


async def test_it_asks_in_the_database_of_the_url(valkey: EmbeddedServer) -> None:
    packed = PackedServer(connect_async(f"{valkey.url}?db=3"), ())

    (said,) = await packed.run([("CLIENT", "INFO")])

    assert b" db=3 " in said
    await packed.close()
    await packed.close()
