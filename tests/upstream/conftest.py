from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import pytest

from tokentape.settings import Settings, Upstream
from tokentape_worker.upstreams import Upstreams

Handler = Callable[["Exchange"], Awaitable[None]]


@dataclass
class Exchange:
    """One request that a server got, and the wire to answer it on, byte for byte."""

    line: str
    headers: dict[str, str]
    body: bytes
    reader: asyncio.StreamReader = field(repr=False)
    writer: asyncio.StreamWriter = field(repr=False)

    def json(self) -> Any:
        return json.loads(self.body)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def send_head(self, status: int = 200, **headers: str) -> None:
        """A head whose body ends with the connection."""
        lines = [
            f"HTTP/1.1 {status} X",
            "connection: close",
            *(f"{name.replace('_', '-')}: {headers[name]}" for name in headers),
        ]
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def send_whole(self, body: bytes, status: int = 200, **headers: str) -> None:
        """An answer after which the connection can be used again."""
        lines = [
            f"HTTP/1.1 {status} X",
            f"content-length: {len(body)}",
            *(f"{n.replace('_', '-')}: {headers[n]}" for n in headers),
        ]
        await self.send("\r\n".join([*lines, "", ""]).encode() + body)

    async def wait_closed(self) -> None:
        """Until the client has closed its side."""
        try:
            while await self.reader.read(4096):
                pass
        except ConnectionError:
            pass


class Server:
    """An HTTP server that leaves every byte of its answers to a handler.

    The wire is closed after a handler ends, unless what it sent lets the connection stay: then the next request is due.
    """

    def __init__(self, handler: Handler) -> None:
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self.url = ""
        self._handler = handler
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            while await self._serve(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        exchange = Exchange(head[0], headers, body, reader, writer)
        self.exchanges.append(exchange)
        keeps = _watch_for_keep_alive(exchange)
        await self._handler(exchange)
        return keeps()


def _watch_for_keep_alive(exchange: Exchange) -> Callable[[], bool]:
    sent: list[bytes] = []
    write = exchange.send

    async def send(data: bytes) -> None:
        sent.append(data[:4096])
        await write(data)

    exchange.send = send  # type: ignore[method-assign]
    return lambda: bool(sent) and (b"content-length" in sent[0] or b"chunked" in sent[0])


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


Serve = Callable[[Handler], Awaitable[Server]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts servers that stop with the test."""
    async with AsyncExitStack() as stack:

        async def start(handler: Handler) -> Server:
            return await stack.enter_async_context(Server(handler))

        yield start


Connect = Callable[..., Awaitable[Upstreams]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Upstreams with one upstream, `default`, at a URL; other arguments are fields of Upstream."""
    async with AsyncExitStack() as stack:

        async def open_upstreams(url: str, *, settings: dict[str, Any] | None = None, **fields: Any) -> Upstreams:
            upstream = Upstream(base_url=url, **fields)
            return await stack.enter_async_context(
                Upstreams(Settings(upstreams={"default": upstream}, **(settings or {})), clock=lambda: 1_700_000_000.0)
            )

        yield open_upstreams
