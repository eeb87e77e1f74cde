from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion

from tokentape.answer import chunks, expected_completion, request_digest
from tokentape.errors import ConfigError
from tokentape.script import Script
from tokentape.simulator import Simulator, SimulatorThread

StartSimulator = Callable[..., Awaitable[Simulator]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def ask(text: str = "Hi", **fields: object) -> dict[str, Any]:
    return {"model": "simulated", "messages": [{"role": "user", "content": text}], **fields}


REQUESTS = {
    "plain": ask(),
    "three choices": ask(n=3),
    "reasoning": ask(simulate={"reasoning_chunks": 5}),
    "tools": ask(tools=[WEATHER], simulate={"tool_calls": 2}),
    "log probabilities": ask(logprobs=True, n=2),
    "cut by max_tokens": ask(max_tokens=5),
    "paced": ask(simulate={"chunks": 5, "interval_ms": 1, "first_token_ms": 2}),
    "many chunks": ask(simulate={"chunks": 3000}),
    "large chunks": ask(simulate={"chunks": 3, "chunk_bytes": 100_000}),
    "nothing": ask(simulate={"chunks": 0}),
    "split bytes": ask(simulate={"fault": "split_bytes"}, n=2),
}
requests = pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)


def openai_arguments(request: dict[str, Any]) -> dict[str, Any]:
    """openai-python knows every field but ours."""
    known = {key: value for key, value in request.items() if key != "simulate"}
    return {**known, "extra_body": {"simulate": request.get("simulate", {})}}


@requests
async def test_openai_python_reads_the_expected_completion(simulator: Simulator, request_: dict[str, Any]) -> None:
    async with openai.AsyncOpenAI(base_url=simulator.base_url, api_key="x", max_retries=0) as client:
        completion = await client.chat.completions.create(**openai_arguments(request_))

    assert completion.model_dump(exclude_unset=True) == expected_completion(request_)


@requests
async def test_openai_python_accumulates_the_expected_completion(
    simulator: Simulator, request_: dict[str, Any]
) -> None:
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()

    async with openai.AsyncOpenAI(base_url=simulator.base_url, api_key="x", max_retries=0) as client:
        stream = await client.chat.completions.create(
            **openai_arguments(request_), stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            state.handle_chunk(chunk)

    # The accumulator adds nulls of its own (`parsed`, `function_call`) and keeps the index of tool calls.
    accumulated = state.current_completion_snapshot.model_dump(exclude_none=True)
    for choice in accumulated["choices"]:
        choice.setdefault("logprobs", None)
        for call in choice["message"].get("tool_calls", ()):
            call.pop("index")
            call["function"].pop("parsed_arguments", None)
    expected = ChatCompletion.model_validate(expected_completion(request_)).model_dump(exclude_none=True)
    for choice in expected["choices"]:
        choice.setdefault("logprobs", None)
    assert accumulated == expected


@requests
async def test_the_stream_is_the_expected_chunks_and_done(
    simulator: Simulator, http: httpx.AsyncClient, request_: dict[str, Any]
) -> None:
    request = {**request_, "stream": True, "stream_options": {"include_usage": True}}

    response = await http.post(f"{simulator.base_url}/chat/completions", json=request)

    body = response.content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").decode()
    events = body.removesuffix("\n\n").split("\n\n")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert events.pop() == "data: [DONE]"
    assert [json.loads(event.removeprefix("data: ")) for event in events] == chunks(request)


async def test_defaults_come_from_the_server(start_simulator: StartSimulator, http: httpx.AsyncClient) -> None:
    defaults = Script(chunks=2, reasoning_chunks=1)
    simulator = await start_simulator(defaults)

    response = await http.post(f"{simulator.base_url}/chat/completions", json=ask())

    assert response.json() == expected_completion(ask(), defaults)


async def test_a_paced_stream_sends_one_chunk_a_packet(simulator: Simulator) -> None:
    """Read below HTTP: each chunk of the transfer coding is one write."""
    request = ask(stream=True, simulate={"chunks": 4, "interval_ms": 1})
    body = json.dumps(request).encode()

    reader, writer = await asyncio.open_connection("127.0.0.1", int(simulator.base_url.split(":")[2].split("/")[0]))
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    await reader.readuntil(b"\r\n\r\n")
    packets = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        packets.append(await reader.readexactly(size))
        await reader.readexactly(2)
    writer.close()

    assert [packet.count(b"data: {") for packet in packets] == [1] * len(chunks(request))


async def test_models_lists_the_names_it_was_given(start_simulator: StartSimulator) -> None:
    simulator = await start_simulator(models=("one", "two"))

    async with openai.AsyncOpenAI(base_url=simulator.base_url, api_key="x") as client:
        models = await client.models.list()

    assert [model.id for model in models.data] == ["one", "two"]


async def test_a_key_is_asked_for_where_one_is_set(start_simulator: StartSimulator) -> None:
    simulator = await start_simulator(api_key="sésame")

    async with httpx.AsyncClient(trust_env=False, base_url=simulator.base_url) as client:
        key = "Bearer sésame".encode()
        refused = await client.post("/chat/completions", json=ask(), headers={"Authorization": "Bearer other"})
        refused_models = await client.get("/models")
        not_text = await client.post("/chat/completions", json=ask(), headers={b"Authorization": b"Bearer \xff"})
        answered = await client.post("/chat/completions", json=ask(), headers={b"Authorization": key})

    assert refused.status_code == refused_models.status_code == not_text.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert answered.status_code == 200
    assert simulator.calls == 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"\xff\xfe{", None),
        (b"{}", "model"),
        (json.dumps(ask(simulate={"chunks": "x"})).encode(), "simulate.chunks"),
    ],
)
async def test_a_wrong_request_is_answered_400(
    simulator: Simulator, http: httpx.AsyncClient, body: bytes, param: str | None
) -> None:
    response = await http.post(f"{simulator.base_url}/chat/completions", content=body)

    error = response.json()["error"]
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert set(error) == {"message", "type", "param", "code"}
    assert simulator.calls == 0


async def test_an_unknown_path_is_answered_in_openais_shape(simulator: Simulator, http: httpx.AsyncClient) -> None:
    missing = await http.get(f"{simulator.base_url}/nothing")
    wrong_method = await http.get(f"{simulator.base_url}/chat/completions")

    assert (missing.status_code, wrong_method.status_code) == (404, 405)
    assert missing.json()["error"]["type"] == wrong_method.json()["error"]["type"] == "invalid_request_error"


async def test_calls_are_counted_in_all_and_by_request(simulator: Simulator, http: httpx.AsyncClient) -> None:
    for text in ("one", "two", "two"):
        await http.post(f"{simulator.base_url}/chat/completions", json=ask(text))

    url = simulator.base_url.removesuffix("/v1")
    stats = (await http.get(f"{url}/stats", params={"digest": request_digest(ask("two"))})).json()

    assert stats == {"calls": 3, "active": 0, "digest": request_digest(ask("two")), "digest_calls": 2}
    assert simulator.calls_of(ask("one")) == 1
    assert simulator.calls_of(ask("three")) == 0


@pytest.mark.parametrize("interval_ms", [0, 1, 3_000_000])
async def test_a_client_that_leaves_ends_its_call(
    simulator: Simulator, http: httpx.AsyncClient, interval_ms: int, wait_until: WaitUntil
) -> None:
    request = ask(stream=True, simulate={"chunks": 1_000_000, "interval_ms": interval_ms})

    async with http.stream("POST", f"{simulator.base_url}/chat/completions", json=request) as response:
        await anext(response.aiter_bytes())
        assert simulator.active == 1

    await wait_until(lambda: simulator.active == 0)


async def test_leaving_the_simulator_cuts_what_is_under_way(http: httpx.AsyncClient, wait_until: WaitUntil) -> None:
    request = ask(stream=True, simulate={"fault": "stall"})

    async with Simulator() as simulator:
        calls = [asyncio.create_task(http.post(f"{simulator.base_url}/chat/completions", json=request))]
        await wait_until(lambda: simulator.active == 1)

    with pytest.raises(httpx.TransportError):
        await calls[0]
    assert simulator.active == 0


async def test_a_port_that_is_taken_is_a_config_error(simulator: Simulator) -> None:
    port = int(simulator.base_url.split(":")[2].split("/")[0])

    with pytest.raises(ConfigError, match=str(port)):
        await Simulator(port=port).__aenter__()


def test_the_thread_serves_a_test_that_is_not_async() -> None:
    with SimulatorThread(Script(chunks=3)) as simulator:
        response = httpx.post(f"{simulator.base_url}/chat/completions", json=ask(), trust_env=False)

        assert response.json() == expected_completion(ask(), Script(chunks=3))
        assert simulator.calls() == simulator.calls(ask()) == 1
        assert simulator.active == 0


def test_the_thread_raises_what_starting_raises() -> None:
    with SimulatorThread() as taken:
        port = int(taken.base_url.split(":")[2].split("/")[0])

        with pytest.raises(ConfigError), SimulatorThread(port=port):
            pass


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_prints_its_address_and_stops_cleanly(number: signal.Signals, as_json: bool) -> None:
    code = f"from tokentape.simulator import run; run(port=0, as_json={as_json})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = json.loads(line)["base_url"] if as_json else line.removeprefix("listening on ").strip()
        assert httpx.get(f"{url}/models", trust_env=False).status_code == 200

        process.send_signal(number)
        rest, stderr = process.communicate(timeout=20)
    finally:
        process.kill()

    assert (process.returncode, rest, stderr) == (0, "", "")
