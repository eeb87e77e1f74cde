"""Who reads and who writes beside the worker, in processes of their own.

    python -P -m benchmarks.programs PROGRAM [ARGUMENT...]

A reader prints {"ready": true} once it reads, and at the end how long chunks were on their way: each one says when it
was written (upstream.py), by a clock that all processes of this host share. Chunks of the first `warm_s` seconds are
not counted: all streams are opened then. All of them run on uvloop, rivals too.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import redis.asyncio
import uvloop

from tokentape import AsyncClient
from tokentape.chunk import ChatCompletionChunk
from tokentape.connection import Server, connect
from tokentape.tape import SCRIPTS, EndData, Position, Tape

from .harness import percentile
from .rivals import say
from .stack import body

#: A chunk that was published, without the two texts around what it says.
CHUNK: Final = (
    b'{"id":"chatcmpl-9b1d5c0e7f2a","object":"chat.completion.chunk","created":1760000000,"model":"paced",'
    b'"choices":[{"index":0,"delta":{"content":" %d"},"logprobs":null,"finish_reason":null}]}'
)
READY: Final = {"ready": True}
#: A hundred a second, until the rival's writer has begun.
_RESUME_TRIES: Final = 3000


class Delays:
    """How long chunks were on their way."""

    def __init__(self, warm_s: float) -> None:
        self._warm_ns = int(warm_s * 1e9)
        self._written = array("q")
        self._delays = array("q")

    def add(self, written_ns: int) -> None:
        self._delays.append(time.monotonic_ns() - written_ns)
        self._written.append(written_ns)

    def add_json(self, data: bytes | str) -> None:
        """The same for a chunk's JSON."""
        self.add(int(json.loads(data)["choices"][0]["delta"]["content"]))

    def tell(self) -> dict[str, Any]:
        since = min(self._written) + self._warm_ns
        pairs = zip(self._written, self._delays, strict=True)
        delays = sorted(delay / 1e6 for written, delay in pairs if written >= since)
        return {
            "p50_ms": percentile(delays, 0.5),
            "p99_ms": percentile(delays, 0.99),
            "worst_ms": delays[-1],
            "chunks": len(delays),
        }


# ---- readers


async def follow_tapes(ids_file: str, warm_s: str) -> None:
    """Follow every job of a file, a task each, with one client. A job that stands there twice is followed twice."""
    delays = Delays(float(warm_s))

    async def follow(client: AsyncClient, job_id: str) -> None:
        async for entry in client.follow(job_id):
            if isinstance(entry.data, ChatCompletionChunk):
                delays.add(int(entry.data.choices[0].delta.content or 0))

    async with AsyncClient() as client:
        ids = Path(ids_file).read_text().split()  # noqa: ASYNC240  (nothing else runs yet)
        tasks = [asyncio.create_task(follow(client, job_id)) for job_id in ids]
        await asyncio.sleep(1.0)  # so that all wait for what comes
        say(READY)
        await asyncio.gather(*tasks)
    say(delays.tell())


async def read_apart(key: str, readers: str, warm_s: str) -> None:
    """Read one tape so many times at once, each reader with a connection and a blocking XREAD of its own."""
    delays = Delays(float(warm_s))

    async def read(client: redis.asyncio.Redis) -> None:
        after: bytes | str = "0-0"
        while True:
            reply: Any = await client.xread({key: after}, count=500, block=2000)
            for entry_id, fields in (row for _, rows in _streams(reply) for row in rows):
                after = entry_id
                if fields[b"kind"] == b"chunk":
                    delays.add_json(fields[b"data"])
                elif fields[b"kind"] == b"end":
                    return

    async with redis.asyncio.Redis.from_url(os.environ["TOKENTAPE_REDIS_URL"]) as client:
        tasks = [asyncio.create_task(read(client)) for _ in range(int(readers))]
        await asyncio.sleep(1.0)
        say(READY)
        await asyncio.gather(*tasks)
    say(delays.tell())


def _streams(reply: Any) -> list[Any]:
    """The streams of an XREAD reply in either protocol version, as (name, rows)."""
    if isinstance(reply, dict):
        return [(name, found[0] if found and isinstance(found[0], list) else found) for name, found in reply.items()]
    return list(reply or ())


async def read_directly(base_url: str, streams: str, chunks: str, interval_ms: str, warm_s: str) -> None:
    """Read streams from the upstream itself: the floor."""
    delays = Delays(float(warm_s))

    async def read() -> None:
        async for event in _events(base_url, chunks, interval_ms):
            delays.add_json(event)

    say(READY)
    await asyncio.gather(*(read() for _ in range(int(streams))))
    say(delays.tell())


async def _events(base_url: str, chunks: str, interval_ms: str) -> AsyncIterator[bytes]:
    """The JSON of each event of one answer."""
    import aiohttp  # noqa: PLC0415  (not needed by those who read tapes)

    request = {**body(int(chunks), float(interval_ms)), "stream": True}
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(f"{base_url}/chat/completions", json=request) as answer,
    ):
        async for line in answer.content:
            if line.startswith(b"data: {"):
                yield line[6:]


# ---- a writer


async def write_tape(job_id: str, chunks: str, interval_ms: str) -> None:
    """Claim a job and write its tape at a pace, one chunk an append, as a worker does under little load."""
    tape = Tape("tokentape", job_id)
    server = Server(connect(os.environ["TOKENTAPE_REDIS_URL"]), SCRIPTS)
    token = "benchmark"
    server.run([
        tape.claim(
            delivery=1, try_=0, worker="benchmark", upstream="default", token=token, reason="", budget=1,
            retention_s=600,
        )
    ])  # fmt: skip
    say(READY)
    due = time.monotonic() + 0.5
    for seq in range(1, int(chunks) + 1):
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        server.run([tape.append(1, token, seq, [CHUNK % time.monotonic_ns()])])
        due += float(interval_ms) / 1000
    server.run([tape.end(Position(1, int(chunks) + 1), token, EndData(status="completed", attempts=1), b"{}", 600)])


# ---- fastapi-resumable-stream and assistant-stream: one process writes, another reads, as in a deployment


def _resumable(client: redis.asyncio.Redis) -> Any:
    return importlib.import_module("fastapi_resumable_stream").ResumableStream(client)


def _assistant(client: redis.asyncio.Redis) -> Any:
    package = importlib.import_module("assistant_stream.resumable")
    return package.create_resumable_stream_context(store=package.create_redis_resumable_stream_store(client))


async def write_resumable(base_url: str, streams: str, chunks: str, interval_ms: str) -> None:
    async with redis.asyncio.Redis.from_url(os.environ["TOKENTAPE_REDIS_URL"]) as client:
        context = _resumable(client)

        async def texts() -> AsyncIterator[str]:
            async for event in _events(base_url, chunks, interval_ms):
                yield event.decode()

        for number in range(int(streams)):
            await context.start(f"stream-{number}", texts)
        say(READY)
        await asyncio.Event().wait()  # its reader says when it is over


async def write_assistant(base_url: str, streams: str, chunks: str, interval_ms: str) -> None:
    async with redis.asyncio.Redis.from_url(os.environ["TOKENTAPE_REDIS_URL"]) as client:
        context = _assistant(client)
        for number in range(int(streams)):
            await context.run(f"stream-{number}", lambda: _events(base_url, chunks, interval_ms))
        say(READY)
        await asyncio.Event().wait()


async def read_resumable(streams: str, warm_s: str) -> None:
    await _resume(_resumable, int(streams), float(warm_s))


async def read_assistant(streams: str, warm_s: str) -> None:
    await _resume(_assistant, int(streams), float(warm_s))


async def _resume(make: Callable[[redis.asyncio.Redis], Any], streams: int, warm_s: float) -> None:
    """Resume every stream from its beginning, a task each, with one client."""
    delays = Delays(warm_s)
    async with redis.asyncio.Redis.from_url(os.environ["TOKENTAPE_REDIS_URL"]) as client:
        context = make(client)

        async def read(number: int) -> None:
            for _ in range(_RESUME_TRIES):
                if (events := await context.resume(f"stream-{number}")) is not None:
                    async for event in events:
                        delays.add_json(event)
                    return
                await asyncio.sleep(0.01)
            raise TimeoutError("the writer has not begun")

        say(READY)
        await asyncio.gather(*map(read, range(streams)))
    say(delays.tell())


PROGRAMS: Final[dict[str, Callable[..., Coroutine[Any, Any, None]]]] = {
    "follow-tapes": follow_tapes,
    "read-apart": read_apart,
    "read-directly": read_directly,
    "write-tape": write_tape,
    "write-resumable": write_resumable,
    "read-resumable": read_resumable,
    "write-assistant": write_assistant,
    "read-assistant": read_assistant,
}

if __name__ == "__main__":
    uvloop.run(PROGRAMS[sys.argv[1]](*sys.argv[2:]))
