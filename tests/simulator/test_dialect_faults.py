"""Every fault in the words of Anthropic and Gemini: before it comes what a chat.completions stream would carry."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal

import anthropic
import httpx
import pytest

from tokentape.answer import chunks, expected_text
from tokentape.completion import ChatCompletion, fold
from tokentape.script import FAULTS
from tokentape.simulator import Simulator
from tokentape.translation import translate
from tokentape_worker.dialects import Call, Verdict
from tokentape_worker.dialects.anthropic import AnthropicAdapter
from tokentape_worker.dialects.gemini import GeminiAdapter

Dialect = Literal["anthropic", "gemini"]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]
dialects = pytest.mark.parametrize("dialect", ["anthropic", "gemini"])


def ask(*faults: str, stream: bool = True, **simulate: object) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hi"}]
    return {"model": "m", "messages": messages, "stream": stream, "simulate": {"fault": faults, **simulate}}


def said_before(request: dict[str, Any], count: int) -> str:
    """The text in the first `count` chunks of the chat.completions stream."""
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks(request)[:count])


@contextlib.asynccontextmanager
async def opened(
    simulator: Simulator, http: httpx.AsyncClient, dialect: Dialect, request: dict[str, Any]
) -> AsyncIterator[httpx.Response]:
    path, body, streamed, _ = translate(dialect, request)
    query, headers = {"alt": "sse"} if streamed else {}, {"anthropic-version": "2023-06-01"}
    async with http.stream("POST", f"{simulator.base_url}{path}", json=body, params=query, headers=headers) as response:
        yield response


async def received(
    simulator: Simulator, http: httpx.AsyncClient, dialect: Dialect, request: dict[str, Any]
) -> tuple[bytes, Exception | None]:
    """The body as far as it came, and what broke it off."""
    body = bytearray()
    async with opened(simulator, http, dialect, request) as response:
        try:
            async for data in response.aiter_raw():
                body += data
        except httpx.TransportError as error:
            return bytes(body), error
    return bytes(body), None


def adapter_of(dialect: Dialect) -> AnthropicAdapter | GeminiAdapter:
    call = Call(job_id="job_1", model="m", created=7)
    return AnthropicAdapter(call) if dialect == "anthropic" else GeminiAdapter(call)


def read(dialect: Dialect, body: bytes) -> tuple[ChatCompletion, Verdict]:
    """What a worker would make of it."""
    adapter = adapter_of(dialect)
    pieces = adapter.feed(body)
    last, verdict = adapter.close()
    return fold(piece.chunk for piece in pieces + last), verdict


@dialects
@pytest.mark.parametrize("fault", ["truncate", "disconnect", "malformed", "error_event"])
async def test_a_fault_strikes_after_as_many_chunks_as_with_openai(
    simulator: Simulator, http: httpx.AsyncClient, dialect: Dialect, fault: str
) -> None:
    request = ask(fault, fault_after=5)

    body, error = await received(simulator, http, dialect, request)

    completion, verdict = read(dialect, body)
    assert completion.text == said_before(request, 5)
    assert not verdict.completed
    assert isinstance(error, httpx.RemoteProtocolError) == (fault == "disconnect")


@dialects
async def test_the_rest_follows_what_is_malformed(
    simulator: Simulator, http: httpx.AsyncClient, dialect: Dialect
) -> None:
    body, _ = await received(simulator, http, dialect, ask("malformed", fault_after=5))

    good = [
        event for event in body.replace(b"\r", b"").split(b"\n\n") if not event.endswith((b'"delta"', b'"content"'))
    ]
    assert read(dialect, b"\n\n".join(good))[0].text == expected_text(ask())


@dialects
async def test_an_error_in_the_stream_has_the_shape_of_its_api(
    simulator: Simulator, http: httpx.AsyncClient, dialect: Dialect
) -> None:
    body, _ = await received(simulator, http, dialect, ask("error_event", fault_after=0))

    data = json.loads(body.partition(b"data: ")[2])
    assert body.startswith(b"event: error\ndata: " if dialect == "anthropic" else b"data: {")
    assert (data["error"].get("type"), data["error"].get("status")) in [("api_error", None), (None, "INTERNAL")]


async def test_anthropics_sdk_raises_an_error_in_the_stream(simulator: Simulator) -> None:
    async with (
        anthropic.DefaultAsyncHttpxClient(trust_env=False) as http_client,
        anthropic.AsyncAnthropic(base_url=simulator.root_url, api_key="x", http_client=http_client) as claude,
    ):
        with pytest.raises(anthropic.APIStatusError, match="told to fail"):
            async with claude.messages.stream(
                model="m",
                max_tokens=99,
                messages=[{"role": "user", "content": "Hi"}],
                extra_body={"simulate": {"fault": "error_event"}},
            ) as stream:
                await stream.until_done()


@pytest.mark.parametrize("stream", [True, False])
@dialects
async def test_stall_sends_nothing_more_until_the_client_leaves(
    simulator: Simulator, http: httpx.AsyncClient, dialect: Dialect, stream: bool, wait_until: WaitUntil
) -> None:
    request = ask("stall", stream=stream, fault_after=4)
    adapter, text = adapter_of(dialect), ""

    async with opened(simulator, http, dialect, request) as response:
        async for data in response.aiter_raw():
            text += fold(piece.chunk for piece in adapter.feed(data)).text
            if not stream or text == said_before(request, 4):
                break
        assert simulator.active == 1

    await wait_until(lambda: simulator.active == 0)


@pytest.mark.parametrize("stream", [True, False])
@dialects
async def test_huge_goes_on_until_the_client_leaves(
    simulator: Simulator, http: httpx.AsyncClient, dialect: Dialect, stream: bool, wait_until: WaitUntil
) -> None:
    adapter, size, length = adapter_of(dialect), 0, 0

    async with opened(simulator, http, dialect, ask("huge", stream=stream)) as response:
        async for data in response.aiter_raw():
            size += len(data)
            length += len(fold(piece.chunk for piece in adapter.feed(data)).text)
            if size > 2_000_000:
                break

    assert length > 1_500_000 or not stream
    await wait_until(lambda: simulator.active == 0)


@dialects
async def test_no_done_leaves_out_the_end_marker_alone(
    simulator: Simulator, http: httpx.AsyncClient, dialect: Dialect
) -> None:
    body, _ = await received(simulator, http, dialect, ask("no_done"))

    completion, verdict = read(dialect, body)
    assert b"message_stop" not in body
    assert completion.text == expected_text(ask())
    assert (verdict.completed, verdict.sentinel) == (True, False)


@dialects
@pytest.mark.parametrize("fault", ["truncate", "malformed", "error_event", "disconnect"])
async def test_a_whole_answer_meets_the_faults_of_the_stream_too(
    simulator: Simulator, http: httpx.AsyncClient, dialect: Dialect, fault: str
) -> None:
    body, error = await received(simulator, http, dialect, ask(fault, stream=False))

    assert isinstance(error, httpx.RemoteProtocolError) == (fault == "disconnect")
    assert not read(dialect, body)[1].completed


@dialects
async def test_split_bytes_mixes_line_ends_and_changes_nothing(
    simulator: Simulator, http: httpx.AsyncClient, dialect: Dialect
) -> None:
    body, _ = await received(simulator, http, dialect, ask("split_bytes", chunks=30))

    assert read(dialect, body)[0].text == expected_text(ask(chunks=30))
    assert {b"}\n\n" in body, b"}\r\n\r\n" in body, b"}\r\r" in body} == {True}


@dialects
async def test_a_fault_strikes_only_the_first_calls_of_a_request(
    simulator: Simulator, http: httpx.AsyncClient, dialect: Dialect
) -> None:
    request = ask("status", "truncate", fault_times=2)

    first, second, third = [(await received(simulator, http, dialect, request))[0] for _ in range(3)]

    assert json.loads(first)["error"]
    assert not read(dialect, second)[1].completed
    assert read(dialect, third)[0].text == expected_text(request)


@dialects
async def test_a_paced_stream_sends_a_chunk_a_packet(simulator: Simulator, dialect: Dialect) -> None:
    """Read below HTTP: each chunk of the transfer coding is one write."""
    request = ask(chunks=4, interval_ms=1)
    path, body, _, _ = translate(dialect, request)
    data = json.dumps(body).encode()

    reader, writer = await asyncio.open_connection("127.0.0.1", int(simulator.root_url.rpartition(":")[2]))
    writer.write(f"POST /v1{path}?alt=sse HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode())
    writer.write(b"anthropic-version: 2023-06-01\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data))
    await reader.readuntil(b"\r\n\r\n")
    packets = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        packets.append(await reader.readexactly(size))
        await reader.readexactly(2)
    writer.close()

    texts = [packet for packet in packets if b'"text":"' in packet and b'"text":""}]' not in packet]
    assert len(texts) == 4


@dialects
@pytest.mark.parametrize("fault", FAULTS)
async def test_no_fault_is_an_error_of_the_simulator(
    simulator: Simulator,
    http: httpx.AsyncClient,
    caplog: pytest.LogCaptureFixture,
    dialect: Dialect,
    fault: str,
    wait_until: WaitUntil,
) -> None:
    caplog.set_level(logging.WARNING)
    call = asyncio.create_task(received(simulator, http, dialect, ask(fault, tool_calls=1)))
    await wait_until(lambda: simulator.calls == 1)

    call.cancel()
    await asyncio.wait([call])
    await wait_until(lambda: simulator.active == 0)

    assert [record for record in caplog.records if record.name.startswith(("aiohttp", "asyncio"))] == []
