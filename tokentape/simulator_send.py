"""Sending a planned answer, at the script's pace.

With an interval, one chunk is one packet (the socket has TCP_NODELAY); without one, chunks are joined up to 64 KiB and
the reader's speed holds the writer back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, NoReturn

from aiohttp import web

from .answer import Answer
from .answer_plan import Wire, plan
from .script import Fault

#: Chunks due at the same time are joined up to this size: what aiohttp lets through before it waits for the reader.
_BATCH_BYTES: Final = 64 * 1024


async def respond(
    request: web.Request, asked: Answer, wire: Wire, fault: Fault | None, split: bool
) -> web.StreamResponse:
    """Send what the answer and its fault come to. Cancelled where the client leaves; ConnectionError, where a write
    finds that out first.
    """
    if fault == "stall_before":
        await wait_until_left()
    if fault == "disconnect_before":
        await _close(request)
    body = plan(asked, fault, split, wire)
    response = web.StreamResponse(headers={"Cache-Control": "no-cache", **wire.headers})
    response.content_type = wire.content_type if asked.stream else "application/json"
    response.charset = "utf-8"
    script = asked.script
    if not asked.stream:
        # The whole answer takes as long as its chunks would have taken.
        await asyncio.sleep((script.first_token_ms + script.interval_ms * script.chunks) / 1000)
    await response.prepare(request)
    if asked.stream and script.first_token_ms:
        await asyncio.sleep(script.first_token_ms / 1000)
    if split:
        await _send_apart(response, body.packets)
    elif asked.stream and script.interval_ms:
        await _send_paced(response, body.packets, script.interval_ms / 1000)
    else:
        await _send_joined(response, body.packets)
    if body.then == "close":
        await _close(request)
    if body.then == "stall":
        await wait_until_left()
    await response.write_eof()
    return response


async def _send_paced(response: web.StreamResponse, packets: Iterable[bytes], interval_s: float) -> None:
    """One packet an interval, counted from the first, so that delays do not add up."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    for packet in packets:
        # Also where it is late already: a stream that catches up must let the others run.
        await asyncio.sleep(max(0.0, due - loop.time()))
        await response.write(packet)
        due += interval_s


async def _send_joined(response: web.StreamResponse, packets: Iterable[bytes]) -> None:
    batch = bytearray()
    for packet in packets:
        batch += packet
        if len(batch) >= _BATCH_BYTES:
            await response.write(bytes(batch))
            batch.clear()
            await asyncio.sleep(0)
    await response.write(bytes(batch))


async def _send_apart(response: web.StreamResponse, packets: Iterator[bytes]) -> None:
    """Each packet a write of its own. The loop turns now and then, so that readers see them come apart."""
    while group := tuple(islice(packets, 8)):
        for packet in group:
            await response.write(packet)
        await asyncio.sleep(0)


async def _close(request: web.Request) -> NoReturn:
    """Close the connection. What was written before still goes out, the end of the body does not."""
    if request.transport is not None:
        request.transport.close()
    await wait_until_left()


async def wait_until_left() -> NoReturn:
    """Wait for the cancellation that comes when the connection is gone."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nobody resolves this future")
