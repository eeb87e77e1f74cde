"""A chat API that costs next to nothing, so that what is measured is who reads it.

    python -P -m benchmarks.upstream      prints {"base_url": …} once it listens on a loopback port

A raw asyncio protocol under uvloop: one event is one HTTP chunk and one packet (asyncio sets TCP_NODELAY), at the pace
that the request asks for in `simulate`, as the simulator has it: `chunks` and `interval_ms`; with no interval as fast
as the reader reads. What each chunk says is when it was written: nanoseconds of the host's monotonic clock, which all
processes on it share. GET /stats counts calls, calls under way and chunks written so far.

It reads the requests of our own clients and no others: anything it does not expect ends the connection.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, Final, cast

import uvloop

#: Written at once where no interval is asked for; what a socket's buffer takes without waiting.
_BURST: Final = 128
#: Streams begin at the same moment, their chunks do not: the golden ratio spreads them over the interval.
_GOLDEN: Final = 0.6180339887498949

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_START: Final = (
    b'data: {"id":"chatcmpl-9b1d5c0e7f2a","object":"chat.completion.chunk","created":1760000000,"model":"paced",'
    b'"system_fingerprint":"fp_44709d6fcb","choices":[{"index":0,"delta":{'
)
_FIRST: Final = _START + b'"role":"assistant","content":" '
_NEXT: Final = _START + b'"content":" '
_MORE: Final = b'"},"logprobs":null,"finish_reason":null}]}\n\n'
_LAST: Final = b'"},"logprobs":null,"finish_reason":"stop"}]}\n\n'
_DONE: Final = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Stats:
    """What was asked and written so far."""

    def __init__(self) -> None:
        self.calls = 0
        self.active = 0
        self.chunks = 0


class Connection(asyncio.Protocol):
    """One client's connection: one answer after the other."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._received = b""
        self._left = 0
        self._sent = 0
        self._interval_s = 0.0
        self._due = 0.0
        self._timer: asyncio.Handle | None = None
        self._answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._stop()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, rest = self._received.partition(b"\r\n\r\n")
        if not blank:
            return
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if len(rest) < length:
            return
        self._received = rest[length:]
        if head.startswith(b"POST "):
            self._begin(json.loads(rest[:length]))
        else:
            self._tell(json.dumps(vars(self._stats)).encode())

    def pause_writing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def resume_writing(self) -> None:
        if self._answering:
            self._timer = self._loop.call_soon(self._burst if not self._interval_s else self._tick)

    def _tell(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        self._transport.write(head + body)

    def _begin(self, body: dict[str, Any]) -> None:
        script = body.get("simulate") or {}
        self._left = int(script.get("chunks", 1))
        self._interval_s = float(script.get("interval_ms", 0)) / 1000
        self._sent = 0
        self._answering = True
        self._stats.calls += 1
        self._stats.active += 1
        self._transport.write(_HEAD)
        if self._interval_s:
            self._due = self._loop.time() + self._interval_s * (self._stats.calls * _GOLDEN % 1)
            self._timer = self._loop.call_at(self._due, self._tick)
        else:
            self._burst()

    def _tick(self) -> None:
        """One chunk at its time. What is late goes out at once, and the next ones keep their times."""
        self._transport.write(self._packet())
        if not self._left:
            self._end()
            return
        self._due += self._interval_s
        self._timer = self._loop.call_at(self._due, self._tick)

    def _burst(self) -> None:
        packets = [self._packet() for _ in range(min(_BURST, self._left))]
        self._timer = None if not self._left else self._loop.call_soon(self._burst)
        self._transport.write(b"".join(packets))  # may pause, and cancel the next burst
        if not self._left:
            self._end()

    def _packet(self) -> bytes:
        self._left -= 1
        start = _NEXT if self._sent else _FIRST
        self._sent += 1
        self._stats.chunks += 1
        event = b"%b%d%b" % (start, time.monotonic_ns(), _MORE if self._left else _LAST)
        return b"%x\r\n%b\r\n" % (len(event), event)

    def _end(self) -> None:
        self._transport.write(_DONE)
        self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._answering:
            self._answering = False
            self._stats.active -= 1


async def serve() -> None:
    stats = Stats()
    loop = asyncio.get_running_loop()
    # A thousand streams are opened at once.
    server = await loop.create_server(lambda: Connection(stats), "127.0.0.1", 0, backlog=4096)
    port = server.sockets[0].getsockname()[1]
    sys.stdout.write(json.dumps({"base_url": f"http://127.0.0.1:{port}/v1"}) + "\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
