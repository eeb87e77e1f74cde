"""A TCP proxy in front of a Redis server that knows where one command ends and the next begins.

It counts the commands of everybody who connects through it, and can stop the world just before command number i is
forwarded, or just after the server has answered it and before the answer is passed on. It can also cut all
connections, refuse new ones, and hold back bytes, as a network does.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Literal, Self
from urllib.parse import urlsplit

When = Literal["before", "after"]


class CommandSplitter:
    """Cuts a stream of RESP commands (arrays of bulk strings) into whole ones."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._buffer += data
        while (size := self._first()) is not None:
            command, self._buffer = self._buffer[:size], self._buffer[size:]
            yield command

    def _first(self) -> int | None:
        """How long the first command is, where it is whole."""
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return None
        at = end + 2
        for _ in range(int(self._buffer[1:end])):
            end = self._buffer.find(b"\r\n", at)
            if end < 0:
                return None
            at = end + 2 + int(self._buffer[at + 1 : end]) + 2
        return at if at <= len(self._buffer) else None


class Proxy:
    """`url` leads through it. `strike` arms it: at command number `number`, call `then`, once."""

    def __init__(self, server_url: str) -> None:
        parts = urlsplit(server_url)
        self._server = (parts.hostname or "127.0.0.1", parts.port or 6379)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}{parts.path}"
        self.commands = 0
        self.struck = threading.Event()
        self._lock = threading.Lock()
        self._strike: tuple[int, When, Callable[[], object]] | None = None
        self._sockets: set[socket.socket] = set()
        self._open = threading.Event()
        self._open.set()
        self._closed = False
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed = True
        self._open.set()
        self._listener.close()
        self.cut()

    def strike(self, number: int, when: When, then: Callable[[], object]) -> None:
        """Arm it, and begin to count anew."""
        with self._lock:
            self.commands = 0
            self._strike = (number, when, then)
            self.struck.clear()

    def cut(self) -> None:
        """Break all connections that there are."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            _close(one)

    def stall(self) -> None:
        """Pass nothing on, in either direction, until `resume`."""
        self._open.clear()

    def resume(self) -> None:
        self._open.set()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:
                _close(client)
                continue
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets |= {client, server}
            link = _Link(self, client, server)
            threading.Thread(target=link.up, daemon=True).start()
            threading.Thread(target=link.down, daemon=True).start()

    def count(self) -> tuple[When, Callable[[], object]] | None:
        """Count one command. -> what is to happen at it."""
        with self._lock:
            self.commands += 1
            if self._strike is None or self.commands != self._strike[0]:
                return None
            _, when, then = self._strike
            self._strike = None
            return when, then

    def wait_open(self) -> None:
        self._open.wait()


class _Link:
    """One connection: the client's commands go up, the server's answers come down."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._after: Callable[[], object] | None = None

    def up(self) -> None:
        splitter = CommandSplitter()
        with contextlib.suppress(OSError):
            while data := self._client.recv(65536):
                self._proxy.wait_open()
                for command in splitter.feed(data):
                    strike = self._proxy.count()
                    if strike is not None and strike[0] == "before":
                        self._happen(strike[1])
                        return
                    if strike is not None:
                        self._after = strike[1]
                    self._server.sendall(command)
        _close(self._server)

    def down(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._server.recv(65536):
                self._proxy.wait_open()
                if self._after is not None:
                    self._happen(self._after)
                    return
                self._client.sendall(data)
        _close(self._client)

    def _happen(self, then: Callable[[], object]) -> None:
        then()
        self._proxy.struck.set()
        self._proxy.wait_open()  # where it stalled, a link is silent too: it breaks once the network is back
        _close(self._client)
        _close(self._server)


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
