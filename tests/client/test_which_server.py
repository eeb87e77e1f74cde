"""Which servers a client uses, when arguments, settings and the environment name some."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest
import redis
import redis.asyncio

from tokentape import AsyncClient, Client, RedisUnavailable, Settings
from tokentape.embedded import EmbeddedServer

QUESTION: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
#: Nobody is there.
ELSEWHERE = "redis://:secret@127.0.0.1:1/0"


@pytest.fixture(scope="module")
def tape_server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as server:
        yield server


def tapes_on(url: str, namespace: str) -> int:
    with redis.Redis.from_url(url) as looking:
        return len(list(looking.scan_iter(f"{namespace}:*:tape")))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_url_beside_settings_of_another_server_is_refused(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"two servers, redis://:\*\*\*@127.0.0.1:1/0 and redis://127.0.0.1:6379/0"):
        kind(ELSEWHERE, settings=Settings.load({}))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_url_that_the_settings_name_too_is_none_too_many(kind: Any) -> None:
    assert kind(ELSEWHERE, settings=Settings.load({}, redis_url=ELSEWHERE)).settings.redis_url == ELSEWHERE


def test_a_url_beside_a_connection_is_refused() -> None:
    with pytest.raises(TypeError, match="url and connection exclude each other"):
        Client(ELSEWHERE, connection=fakeredis.FakeRedis())
    with pytest.raises(TypeError, match="url and connection exclude each other"):
        AsyncClient(ELSEWHERE, connection=fakeredis.FakeAsyncRedis())


def test_a_connection_is_used_in_place_of_the_url_of_the_settings() -> None:
    with Client(connection=fakeredis.FakeRedis(), settings=Settings.load({}, redis_url=ELSEWHERE)) as client:
        assert client.submit(**QUESTION).status().status == "queued"


def test_tapes_stand_where_the_environment_says_also_with_a_connection(
    redis_url: str, namespace: str, tape_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENTAPE_TAPE_URL", tape_server.url)
    monkeypatch.setenv("TOKENTAPE_NAMESPACE", namespace)

    with redis.Redis.from_url(redis_url) as connection, Client(connection=connection) as client:
        job = client.submit(**QUESTION)

        assert job.status().status == "queued"
        assert client.overview().queued["default"] == 1
        assert (tapes_on(tape_server.url, namespace), tapes_on(redis_url, namespace)) == (1, 0)


async def test_tapes_stand_where_the_settings_say_also_with_an_asyncio_connection(
    redis_url: str, namespace: str, tape_server: EmbeddedServer
) -> None:
    settings = Settings.load({}, tape_url=tape_server.url, namespace=namespace)

    async with (
        redis.asyncio.Redis.from_url(redis_url) as connection,
        AsyncClient(connection=connection, settings=settings) as client,
    ):
        job = await client.submit(**QUESTION)

        assert (await job.status()).status == "queued"
        assert (tapes_on(tape_server.url, namespace), tapes_on(redis_url, namespace)) == (1, 0)


@pytest.mark.parametrize(
    ("connection", "tape_url", "one"),
    [
        (redis.Redis(), "redis://localhost", True),
        (redis.Redis(host="h", port=7, db=2), "redis://:password@h:7/2", True),
        (redis.Redis(host="h", port=7, db=2), "redis://h:7/3", False),
        (redis.Redis(host="h", port=7), "redis://h", False),
        (redis.Redis(unix_socket_path="/run/r"), "unix:///run/r", True),
        (redis.Redis(unix_socket_path="/run/r"), "redis://localhost", False),
        # It does not say where it is: two connections to one server do no harm.
        (redis.Redis(connection_pool=redis.ConnectionPool()), "redis://localhost", False),
    ],
)
def test_a_connection_to_the_server_of_the_tapes_serves_for_both(
    connection: redis.Redis, tape_url: str, one: bool
) -> None:
    with Client(connection=connection, settings=Settings.load({}, tape_url=tape_url)) as client:
        assert (client._tape is client._queue) is one


def test_a_client_closes_the_connections_that_it_opened_and_no_other(
    redis_url: str, namespace: str, tape_server: EmbeddedServer
) -> None:
    settings = Settings.load({}, tape_url=tape_server.url, namespace=namespace)
    with redis.Redis.from_url(redis_url, client_name="given") as connection:
        with Client(connection=connection, settings=settings) as client:
            client.submit(**QUESTION)
            client._tape.client.client_setname("opened")  # of the one connection in its pool

        assert "given" in {one["name"] for one in connection.client_list()}
        with redis.Redis.from_url(tape_server.url) as looking:
            while "opened" in {one["name"] for one in looking.client_list()}:
                pass


UNREACHABLE: list[tuple[dict[str, Any], str]] = [
    ({"settings": Settings.load({}, redis_url=ELSEWHERE, redis_wait_s=0.01)}, "redis://:***@127.0.0.1:1/0"),
    ({"url": "redis://127.0.0.1:1/3"}, "redis://127.0.0.1:1/3"),
    ({"url": "unix:///nowhere/redis.sock"}, "unix:///nowhere/redis.sock"),
    ({"connection": redis.Redis(port=1, password="secret")}, "redis://localhost:1/0"),
    ({"connection": redis.Redis(host="::1", port=1, ssl=True, db=2)}, "rediss://[::1]:1/2"),
    ({"connection": redis.Redis(unix_socket_path="/nowhere/redis.sock")}, "unix:///nowhere/redis.sock?db=0"),
]


@pytest.mark.parametrize(("arguments", "address"), UNREACHABLE)
def test_a_server_that_does_not_answer_is_told_by_its_address(
    arguments: dict[str, Any], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENTAPE_REDIS_WAIT_S", "0.01")

    with Client(**arguments) as client, pytest.raises(RedisUnavailable) as unavailable:
        client.overview()

    assert unavailable.value.url == address
    assert unavailable.value.__notes__ == [f"asked {address}"]
    assert "secret" not in str(unavailable.value)


async def test_it_is_the_address_of_the_tapes_where_those_stand_elsewhere(redis_url: str) -> None:
    settings = Settings.load({}, redis_url=redis_url, tape_url=ELSEWHERE, redis_wait_s=0.01)

    with Client(settings=settings) as client, pytest.raises(RedisUnavailable) as unavailable:
        client.status(f"job_{32 * '0'}")
    assert unavailable.value.url == "redis://:***@127.0.0.1:1/0"

    async with AsyncClient(settings=settings) as waiting:
        with pytest.raises(RedisUnavailable) as unavailable:
            await waiting.status(f"job_{32 * '0'}")
    assert unavailable.value.url == "redis://:***@127.0.0.1:1/0"


def test_a_connection_that_does_not_know_its_address_is_none() -> None:
    pool: Any = redis.ConnectionPool(connection_class=Lost)
    settings = Settings.load({}, redis_wait_s=0.01)

    client = Client(connection=redis.Redis(connection_pool=pool), settings=settings)

    with client, pytest.raises(RedisUnavailable) as unavailable:
        client.overview()

    assert unavailable.value.url is None
    assert not hasattr(unavailable.value, "__notes__")


class Lost(redis.Connection):
    """As one of Sentinel's while no master is known."""

    def connect(self) -> None:
        raise redis.ConnectionError("no master")
