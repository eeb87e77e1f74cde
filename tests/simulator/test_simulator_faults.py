"""Every fault, as a client that only knows HTTP sees it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, get_args

import httpx
import pytest

from tokentape.answer import chunks, expected_completion
from tokentape.script import FAULTS, Fault, Script
from tokentape.simulator import Simulator

StartSimulator = Callable[..., Awaitable[Simulator]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]

IN_THE_STREAM = ("disconnect", "truncate", "stall", "malformed", "error_event", "huge")


def ask(*faults: str, stream: bool = True, **simulate: object) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hi"}]
    return {"model": "m", "messages": messages, "stream": stream, "simulate": {"fault": faults, **simulate}}


def events(body: bytes) -> list[str]:
    return [event.removeprefix("data: ") for event in body.decode().split("\n\n") if event]


@contextlib.asynccontextmanager
async def opened(
    simulator: Simulator, http: httpx.AsyncClient, request: dict[str, Any]
) -> AsyncIterator[httpx.Response]:
    async with http.stream("POST", f"{simulator.base_url}/chat/completions", json=request) as response:
        yield response


async def post(simulator: Simulator, http: httpx.AsyncClient, request: dict[str, Any]) -> httpx.Response:
    return await http.post(f"{simulator.base_url}/chat/completions", json=request)


async def received(response: httpx.Response) -> tuple[bytes, Exception | None]:
    """The body as far as it came, and what broke it off."""
    body = bytearray()
    try:
        async for data in response.aiter_raw():
            body += data
    except httpx.TransportError as error:
        return bytes(body), error
    return bytes(body), None


async def read_until(response: httpx.Response, sent: list[dict[str, Any]]) -> None:
    """Read exactly these chunks, which end no body."""
    body = bytearray()
    stream = response.aiter_raw()
    while len(events(bytes(body))) < len(sent) or not body.endswith(b"\n\n"):
        body += await anext(stream)
    assert [json.loads(event) for event in events(bytes(body))] == sent


def test_every_fault_has_a_name_and_a_test() -> None:
    assert get_args(Fault) == FAULTS
    assert len(FAULTS) == len(set(FAULTS)) == 15


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ({}, (500, None, "server_error")),
        ({"status": 503, "retry_after": 2}, (503, "2", "server_error")),
        ({"status": 404}, (404, None, "invalid_request_error")),
        ({"status": 429, "retry_after": 0.25}, (429, "0.25", "requests")),
    ],
)
async def test_status_answers_an_http_error(
    simulator: Simulator,
    http: httpx.AsyncClient,
    script: dict[str, Any],
    expected: tuple[int, str | None, str],
    stream: bool,
) -> None:
    response = await post(simulator, http, ask("status", stream=stream, **script))

    kind = response.json()["error"]["type"]
    assert (response.status_code, response.headers.get("Retry-After"), kind) == expected


async def test_rate_limit_answers_429_with_a_hint(simulator: Simulator, http: httpx.AsyncClient) -> None:
    response = await post(simulator, http, ask("rate_limit"))

    assert response.status_code == 429
    assert response.headers["Retry-After"] == "1"
    assert response.json()["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize("stream", [True, False])
async def test_disconnect_before_closes_without_a_byte(
    simulator: Simulator, http: httpx.AsyncClient, stream: bool, wait_until: WaitUntil
) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        await post(simulator, http, ask("disconnect_before", stream=stream))

    await wait_until(lambda: simulator.active == 0)
    assert simulator.calls == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_stall_before_answers_nothing_until_the_client_leaves(
    simulator: Simulator, http: httpx.AsyncClient, stream: bool, wait_until: WaitUntil
) -> None:
    call = asyncio.create_task(post(simulator, http, ask("stall_before", stream=stream)))
    await wait_until(lambda: simulator.active == 1)

    call.cancel()
    await asyncio.wait([call])

    await wait_until(lambda: simulator.active == 0)


async def test_html_is_a_page_with_status_200(simulator: Simulator, http: httpx.AsyncClient) -> None:
    response = await post(simulator, http, ask("html"))

    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert response.text.startswith("<!doctype html>")


async def test_empty_is_a_stream_of_nothing(simulator: Simulator, http: httpx.AsyncClient) -> None:
    response = await post(simulator, http, ask("empty"))

    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"].startswith("text/event-stream")


async def test_wrong_json_is_json_of_another_shape(simulator: Simulator, http: httpx.AsyncClient) -> None:
    response = await post(simulator, http, ask("wrong_json"))

    assert response.status_code == 200
    assert "choices" not in response.json()


async def test_disconnect_breaks_the_body_off_after_the_chunks_before_it(
    simulator: Simulator, http: httpx.AsyncClient, wait_until: WaitUntil
) -> None:
    request = ask("disconnect", fault_after=3)

    async with opened(simulator, http, request) as response:
        body, error = await received(response)

    assert isinstance(error, httpx.RemoteProtocolError)
    assert [json.loads(event) for event in events(body)] == chunks(request)[:3]
    await wait_until(lambda: simulator.active == 0)


async def test_truncate_ends_the_body_cleanly_midway(simulator: Simulator, http: httpx.AsyncClient) -> None:
    request = ask("truncate", chunks=20)

    response = await post(simulator, http, request)

    assert [json.loads(event) for event in events(response.content)] == chunks(request)[:10]


@pytest.mark.parametrize("interval_ms", [0, 1])
async def test_stall_sends_nothing_more_until_the_client_leaves(
    simulator: Simulator, http: httpx.AsyncClient, interval_ms: int, wait_until: WaitUntil
) -> None:
    request = ask("stall", fault_after=4, interval_ms=interval_ms)

    async with opened(simulator, http, request) as response:
        await read_until(response, chunks(request)[:4])
        assert simulator.active == 1

    await wait_until(lambda: simulator.active == 0)


async def test_malformed_puts_a_line_that_is_not_json_into_the_stream(
    simulator: Simulator, http: httpx.AsyncClient
) -> None:
    request = ask("malformed", fault_after=2)

    sent = events((await post(simulator, http, request)).content)

    broken = sent.pop(2)
    assert sent.pop() == "[DONE]"
    assert [json.loads(event) for event in sent] == chunks(request)
    with pytest.raises(json.JSONDecodeError):
        json.loads(broken)


async def test_error_event_puts_an_error_into_the_stream_and_ends_it(
    simulator: Simulator, http: httpx.AsyncClient
) -> None:
    request = ask("error_event", fault_after=2)

    sent = [json.loads(event) for event in events((await post(simulator, http, request)).content)]

    assert sent[:2] == chunks(request)[:2]
    assert sent[2]["error"]["type"] == "server_error"
    assert len(sent) == 3


async def test_no_done_leaves_out_done_alone(simulator: Simulator, http: httpx.AsyncClient) -> None:
    request = ask("no_done")

    sent = events((await post(simulator, http, request)).content)

    assert [json.loads(event) for event in sent] == chunks(request)


@pytest.mark.parametrize("stream", [True, False])
async def test_huge_goes_on_until_the_client_leaves(
    simulator: Simulator, http: httpx.AsyncClient, stream: bool, wait_until: WaitUntil
) -> None:
    size = 0

    async with opened(simulator, http, ask("huge", stream=stream)) as response:
        async for data in response.aiter_raw():
            size += len(data)
            if size > 5_000_000:
                break

    await wait_until(lambda: simulator.active == 0)


async def test_huge_waits_for_a_reader_that_does_not_read(simulator: Simulator, http: httpx.AsyncClient) -> None:
    async with opened(simulator, http, ask("huge")):
        models = await http.get(f"{simulator.base_url}/models")

        assert models.status_code == 200
        assert simulator.active == 1


async def test_split_bytes_cuts_characters_and_mixes_line_ends(simulator: Simulator) -> None:
    """Read below HTTP: each chunk of the transfer coding is one write."""
    request = ask("split_bytes", chunks=40)
    body = json.dumps(request).encode()

    reader, writer = await asyncio.open_connection("127.0.0.1", int(simulator.base_url.split(":")[2].split("/")[0]))
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    await reader.readuntil(b"\r\n\r\n")
    pieces = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        pieces.append(await reader.readexactly(size))
        await reader.readexactly(2)
    writer.close()

    whole = b"".join(pieces)
    assert {len(piece) for piece in pieces[:-1]} == {1, 2, 3, 4, 5, 6, 7}
    assert any(piece[0] & 0xC0 == 0x80 for piece in pieces)
    assert b"}\n\n" in whole
    assert b"}\r\n\r\n" in whole
    assert b"}\r\r" in whole


async def test_split_bytes_accompanies_another_fault(simulator: Simulator, http: httpx.AsyncClient) -> None:
    request = ask("split_bytes", "truncate", fault_after=1)

    response = await post(simulator, http, request)

    assert [json.loads(event) for event in events(response.content)] == chunks(request)[:1]


@pytest.mark.parametrize("fault", IN_THE_STREAM)
async def test_a_fault_strikes_before_the_answer_is_whole(
    simulator: Simulator, http: httpx.AsyncClient, fault: str
) -> None:
    request = ask(fault, fault_after=1_000, chunks=2, tool_calls=1)
    unfinished = [chunk for chunk in chunks(request) if chunk["choices"][0]["finish_reason"] is None]

    async with opened(simulator, http, request) as response:
        body = b""
        async for data in response.aiter_raw():
            body += data
            if len(events(body)) >= len(unfinished):
                break

    assert [json.loads(event) for event in events(body)[: len(unfinished)]] == unfinished


@pytest.mark.parametrize("fault", ["truncate", "malformed", "error_event", "disconnect", "stall"])
async def test_a_whole_answer_meets_the_faults_of_the_stream_too(
    simulator: Simulator, http: httpx.AsyncClient, fault: str
) -> None:
    request = ask(fault, stream=False)
    half = json.dumps(expected_completion(request), ensure_ascii=False, separators=(",", ":")).encode()
    half = half[: len(half) // 2]

    async with opened(simulator, http, request) as response:
        if fault == "stall":
            assert await anext(response.aiter_raw()) == half
        else:
            body, error = await received(response)
            assert isinstance(error, httpx.RemoteProtocolError) == (fault == "disconnect")
            assert body.startswith(b'{"error":' if fault == "error_event" else half)
            assert body != half or fault in ("truncate", "disconnect")


async def test_a_fault_strikes_only_the_first_calls_of_a_request(simulator: Simulator, http: httpx.AsyncClient) -> None:
    request = ask("status", "truncate", fault_times=2, stream=False)

    first, second, third = [await post(simulator, http, request) for _ in range(3)]

    assert first.status_code == 500
    assert second.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        second.json()
    assert third.json() == expected_completion(request)


async def test_fault_times_are_counted_for_each_request(
    start_simulator: StartSimulator, http: httpx.AsyncClient
) -> None:
    simulator = await start_simulator(Script(fault=("status",), fault_times=1))
    one = {"model": "m", "messages": [{"role": "user", "content": "one"}]}
    two = {"model": "m", "messages": [{"role": "user", "content": "two"}]}

    statuses = [(await post(simulator, http, request)).status_code for request in (one, two, one, two)]

    assert statuses == [500, 500, 200, 200]


@pytest.mark.parametrize("fault", FAULTS)
async def test_no_fault_is_an_error_of_the_simulator(
    simulator: Simulator, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, fault: str, wait_until: WaitUntil
) -> None:
    caplog.set_level(logging.WARNING)
    call = asyncio.create_task(post(simulator, http, ask(fault)))
    await wait_until(lambda: simulator.calls == 1)

    call.cancel()
    await asyncio.wait([call])
    await wait_until(lambda: simulator.active == 0)

    assert [record for record in caplog.records if record.name.startswith(("aiohttp", "asyncio"))] == []
