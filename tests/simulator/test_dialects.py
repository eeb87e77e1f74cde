"""The simulator in Anthropic's and Gemini's words: read by the vendors' own SDKs, and by the worker's adapters."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Literal

import anthropic
import httpx
import pytest
from google import genai
from google.genai import errors, types

from tokentape.answer import expected_completion, expected_text
from tokentape.completion import ChatCompletion, fold
from tokentape.simulator import SimulatorThread
from tokentape.translation import translate
from tokentape_worker.dialects import Call
from tokentape_worker.dialects.anthropic import AnthropicAdapter
from tokentape_worker.dialects.gemini import GeminiAdapter

Dialect = Literal["anthropic", "gemini"]
OpenClaude = Callable[..., anthropic.Anthropic]
OpenGemini = Callable[..., genai.Client]
dialects = pytest.mark.parametrize("dialect", ["anthropic", "gemini"])
streamed_or_not = pytest.mark.parametrize("stream", [True, False])

PARAMETERS: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
PDF = f"data:application/pdf;base64,{base64.b64encode(b'%PDF-1.7').decode()}"
HI: list[anthropic.types.MessageParam] = [{"role": "user", "content": "Hi"}]


def ask(text: str = "Hi", **fields: object) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


def turn(*messages: dict[str, Any], **fields: object) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages), **fields}


CALLED = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
REQUESTS = {
    "plain": ask(),
    "many chunks": ask(simulate={"chunks": 500}),
    "large chunks": ask(simulate={"chunks": 3, "chunk_bytes": 100_000}),
    "paced": ask(simulate={"chunks": 5, "interval_ms": 1, "first_token_ms": 2}),
    "split bytes": ask(simulate={"fault": "split_bytes"}),
    "cut by max_tokens": ask(max_tokens=5),
    "thinking": ask(reasoning_effort="high", simulate={"reasoning_chunks": 6}),
    "nothing but thinking": ask(reasoning_effort="low", max_tokens=1100, simulate={"reasoning_chunks": 2000}),
    "tools": ask(tools=[WEATHER], tool_choice="required"),
    "parallel tools and thinking": ask(
        tools=[WEATHER], reasoning_effort="low", simulate={"tool_calls": 3, "reasoning_chunks": 2}
    ),
    "system and developer": turn(
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "One"},
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": "Two"},
        {"role": "assistant", "content": "Three"},
        {"role": "user", "content": "Four"},
    ),
    "files": turn(
        {"role": "user", "content": [
            {"type": "text", "text": "Read these."},
            {"type": "file", "file": {"file_data": PDF, "filename": "a.pdf"}},
            {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}},
        ]},
    ),
    "a tool's result": turn(
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALLED]},
        {"role": "tool", "tool_call_id": "call_1", "content": "18 °C"},
        tools=[WEATHER],
    ),
}  # fmt: skip
requests = pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorThread]:
    with SimulatorThread() as simulator:
        yield simulator


@pytest.fixture
def open_claude(simulator: SimulatorThread) -> Iterator[OpenClaude]:
    """Makes Anthropic's client for a simulator, and closes it with the test."""
    with ExitStack() as stack:

        def open_(at: SimulatorThread = simulator, key: str = "x") -> anthropic.Anthropic:
            http_client = stack.enter_context(anthropic.DefaultHttpxClient(trust_env=False))
            return anthropic.Anthropic(base_url=at.root_url, api_key=key, max_retries=0, http_client=http_client)

        yield open_


@pytest.fixture
def claude(open_claude: OpenClaude) -> anthropic.Anthropic:
    return open_claude()


@pytest.fixture
def open_gemini(simulator: SimulatorThread) -> Iterator[OpenGemini]:
    """Makes Google's client for a simulator and a script, and closes it with the test."""
    with ExitStack() as stack:

        def open_(at: SimulatorThread = simulator, key: str = "x", **simulate: object) -> genai.Client:
            options = types.HttpOptions(
                base_url=at.root_url,
                client_args={"trust_env": False},
                async_client_args={"trust_env": False},
                extra_body={"simulate": simulate},
            )
            return stack.enter_context(genai.Client(api_key=key, http_options=options))

        yield open_


def post(simulator: SimulatorThread, dialect: Dialect, request: dict[str, Any], **headers: str) -> httpx.Response:
    """The request as a worker would send it."""
    path, body, streamed, _ = translate(dialect, request)
    return httpx.post(
        f"{simulator.base_url}{path}",
        json=body,
        params={"alt": "sse"} if streamed else {},
        headers={"anthropic-version": "2023-06-01", **headers},
        trust_env=False,
        timeout=30,
    )


def read(dialect: Dialect, body: bytes, n: int = 1) -> tuple[ChatCompletion, bool]:
    """What a worker would make of an answer, and whether it is whole."""
    call = Call(job_id="job_1", model="m", created=7, n=n)
    adapter = AnthropicAdapter(call) if dialect == "anthropic" else GeminiAdapter(call)
    pieces = adapter.feed(body)
    last, verdict = adapter.close()
    return fold(piece.chunk for piece in pieces + last), verdict.completed


def calls(message: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Id, name and arguments of each call."""
    functions = [(call["id"], call["function"]) for call in message.get("tool_calls", ())]
    return [(call_id, function["name"], json.loads(function["arguments"])) for call_id, function in functions]


# ---- one answer in every dialect


@dialects
@streamed_or_not
@requests
def test_a_request_gets_the_same_answer_translated(
    simulator: SimulatorThread, dialect: Dialect, request_: dict[str, Any], stream: bool
) -> None:
    request = {**request_, "stream": stream}

    completion, whole = read(dialect, post(simulator, dialect, request).content)

    expected = expected_completion(request)
    said, message = completion.choices[0].message.model_dump(exclude_none=True), expected["choices"][0]["message"]
    assert whole
    assert completion.text == expected_text(request)
    assert said.get("reasoning_content") == message.get("reasoning_content")
    assert calls(said) == calls(message)
    assert completion.choices[0].finish_reason == expected["choices"][0]["finish_reason"]
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == expected["usage"]["prompt_tokens"]
    assert completion.usage.completion_tokens == expected["usage"]["completion_tokens"]


@dialects
def test_a_call_is_counted_with_its_request_in_whichever_dialect(simulator: SimulatorThread, dialect: Dialect) -> None:
    request = ask(f"counted in {dialect}")

    post(simulator, dialect, request)
    post(simulator, dialect, {**request, "stream": False})

    assert simulator.calls(request) == 2


@dialects
@streamed_or_not
def test_reasoning_that_nobody_asked_to_see_is_counted_and_not_sent(
    simulator: SimulatorThread, dialect: Dialect, stream: bool
) -> None:
    request = ask(stream=stream, simulate={"reasoning_chunks": 7, "chunks": 2})

    completion, _ = read(dialect, post(simulator, dialect, request).content)

    assert completion.choices[0].message.model_dump().get("reasoning_content") is None
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 9


@streamed_or_not
def test_gemini_has_as_many_candidates_as_asked_for_with_their_log_probabilities(
    simulator: SimulatorThread, stream: bool
) -> None:
    request = ask(n=3, logprobs=True, stream=stream)

    completion, whole = read("gemini", post(simulator, "gemini", request).content, n=3)

    expected = expected_completion(request)["choices"]
    assert whole
    assert [choice.message.content for choice in completion.choices] == [expected_text(request, i) for i in range(3)]
    for choice, other in zip(completion.choices, expected, strict=True):
        assert choice.logprobs is not None
        assert [token["token"] for token in choice.logprobs.model_dump()["content"]] == [
            token["token"] for token in other["logprobs"]["content"]
        ]


def test_a_models_name_may_hold_what_paths_escape(simulator: SimulatorThread) -> None:
    request = {**ask(), "model": "google/ü:free"}

    completion, _ = read("gemini", post(simulator, "gemini", request).content)

    assert completion.text == expected_text(request)


def test_without_alt_sse_gemini_streams_one_array(simulator: SimulatorThread) -> None:
    path, body, _, _ = translate("gemini", ask())

    response = httpx.post(f"{simulator.root_url}/v1beta{path}", json=body, trust_env=False)

    assert response.headers["content-type"].startswith("application/json")
    assert len(response.json()) == 21
    assert read("gemini", response.content)[0].text == expected_text(ask())


def test_gemini_ends_its_lines_with_crlf(simulator: SimulatorThread) -> None:
    body = post(simulator, "gemini", ask()).content

    assert body.count(b"\r\n\r\n") == 21
    assert body.count(b"\r\n") == body.count(b"\n") == body.count(b"\r") == 42


def test_anthropics_path_may_leave_out_the_version(simulator: SimulatorThread) -> None:
    _, body, _, _ = translate("anthropic", ask())

    response = httpx.post(
        f"{simulator.root_url}/messages", json=body, headers={"anthropic-version": "2023-06-01"}, trust_env=False
    )

    assert read("anthropic", response.content)[0].text == expected_text(ask())


# ---- the vendors' own SDKs


def test_anthropics_sdk_reads_a_whole_message(claude: anthropic.Anthropic) -> None:
    request = ask(max_tokens=100)

    message = claude.messages.create(model="m", max_tokens=100, messages=HI)

    assert [block.type for block in message.content] == ["text"]
    assert message.content[0].to_dict()["text"] == expected_text(request)
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == expected_completion(request)["usage"]["completion_tokens"]


def test_anthropics_sdk_accumulates_thinking_and_text(claude: anthropic.Anthropic) -> None:
    simulate = {"reasoning_chunks": 4}
    expected = expected_completion(ask(simulate=simulate))
    names = []

    with claude.messages.stream(
        model="m",
        max_tokens=4000,
        messages=HI,
        thinking={"type": "enabled", "budget_tokens": 2000},
        extra_body={"simulate": simulate},
    ) as stream:
        names = [event.type for event in stream]
        message = stream.get_final_message()

    thinking, text = message.content
    assert thinking.type == "thinking"
    assert text.type == "text"
    assert thinking.thinking == expected["choices"][0]["message"]["reasoning_content"]
    assert thinking.signature
    assert text.text == expected["choices"][0]["message"]["content"]
    assert message.usage.input_tokens == expected["usage"]["prompt_tokens"]
    assert message.usage.output_tokens == expected["usage"]["completion_tokens"]
    assert names[0] == "message_start"
    assert names[-2:] == ["message_delta", "message_stop"]


def test_thinking_can_be_left_out_of_sight(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(
        model="m",
        max_tokens=4000,
        messages=HI,
        thinking={"type": "adaptive", "display": "omitted"},
        extra_body={"simulate": {"reasoning_chunks": 4}},
    )

    assert message.content[0].type == "thinking"
    assert message.content[0].thinking == ""
    assert message.content[0].signature


@pytest.mark.parametrize("count", [1, 3])
def test_anthropics_sdk_accumulates_tool_calls(claude: anthropic.Anthropic, count: int) -> None:
    simulate = {"tool_calls": count}
    expected = expected_completion(ask(tools=[WEATHER], simulate=simulate))["choices"][0]["message"]

    with claude.messages.stream(
        model="m",
        max_tokens=4000,
        messages=HI,
        tools=[{"name": "weather", "input_schema": PARAMETERS}],
        extra_body={"simulate": simulate},
    ) as stream:
        message = stream.get_final_message()

    uses = [(block.id, block.name, block.input) for block in message.content if block.type == "tool_use"]
    assert uses == calls(expected)
    assert len(uses) == len(message.content) == count
    assert message.stop_reason == "tool_use"


def test_googles_sdk_reads_a_whole_response(open_gemini: OpenGemini) -> None:
    response = open_gemini().models.generate_content(model="m", contents="Hi")

    assert response.text == expected_text(ask())
    assert response.candidates is not None
    assert response.candidates[0].finish_reason == types.FinishReason.STOP
    assert response.usage_metadata is not None
    assert response.usage_metadata.total_token_count == expected_completion(ask())["usage"]["total_tokens"]


def test_googles_sdk_reads_a_stream_with_thoughts(open_gemini: OpenGemini) -> None:
    simulate = {"reasoning_chunks": 4}
    expected = expected_completion(ask(simulate=simulate))
    config = types.GenerateContentConfig(thinking_config=types.ThinkingConfig(include_thoughts=True))

    responses = list(open_gemini(**simulate).models.generate_content_stream(model="m", contents="Hi", config=config))

    parts = [part for response in responses for part in response.parts or ()]
    message = expected["choices"][0]["message"]
    assert "".join(part.text or "" for part in parts if part.thought) == message["reasoning_content"]
    assert "".join(part.text or "" for part in parts if not part.thought) == message["content"]
    assert parts[-1].thought_signature
    usage = responses[-1].usage_metadata
    assert usage is not None
    assert usage.thoughts_token_count == 4
    assert usage.total_token_count == expected["usage"]["total_tokens"]


@streamed_or_not
def test_googles_sdk_reads_tool_calls(open_gemini: OpenGemini, stream: bool) -> None:
    simulate = {"tool_calls": 2}
    expected = expected_completion(ask(tools=[WEATHER], simulate=simulate))["choices"][0]["message"]
    schema = types.Schema(
        type=types.Type.OBJECT,
        properties={
            "city": types.Schema(type=types.Type.STRING),
            "days": types.Schema(type=types.Type.INTEGER, minimum=1, maximum=9),
        },
    )
    declared = types.FunctionDeclaration(name="weather", parameters=schema)
    config = types.GenerateContentConfig(tools=[types.Tool(function_declarations=[declared])])
    models = open_gemini(**simulate).models

    if stream:
        responses = list(models.generate_content_stream(model="m", contents="Hi", config=config))
    else:
        responses = [models.generate_content(model="m", contents="Hi", config=config)]

    made = [call for response in responses for call in response.function_calls or ()]
    assert [(call.id, call.name, call.args) for call in made] == calls(expected)


# ---- what is refused


def test_anthropics_sdk_understands_a_refusal(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(model="m", max_tokens=0, messages=HI)

    assert caught.value.body == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "max_tokens: Field required"},
        "request_id": "req_simulated",
    }


@pytest.mark.parametrize(
    ("status", "answered", "kind"),
    [
        (400, 400, "invalid_request_error"),
        (403, 403, "permission_error"),
        (429, 429, "rate_limit_error"),
        (500, 500, "api_error"),
        (503, 529, "overloaded_error"),
        (504, 504, "timeout_error"),
        (529, 529, "overloaded_error"),
    ],
)
def test_anthropic_names_each_status(simulator: SimulatorThread, status: int, answered: int, kind: str) -> None:
    simulate = {"fault": "status", "status": status, "retry_after": 2}

    response = post(simulator, "anthropic", ask(simulate=simulate))

    assert (response.status_code, response.json()["error"]["type"]) == (answered, kind)
    assert response.headers["retry-after"] == "2"


@pytest.mark.parametrize(
    ("status", "name"),
    [(400, "INVALID_ARGUMENT"), (404, "NOT_FOUND"), (500, "INTERNAL"), (503, "UNAVAILABLE"), (529, "UNAVAILABLE")],
)
def test_googles_sdk_understands_each_status(open_gemini: OpenGemini, status: int, name: str) -> None:
    with pytest.raises(errors.APIError) as caught:
        open_gemini(fault="status", status=status).models.generate_content(model="m", contents="Hi")

    assert (caught.value.code, caught.value.status) == (status, name)


def test_gemini_says_when_to_come_again_in_the_body_alone(simulator: SimulatorThread) -> None:
    response = post(simulator, "gemini", ask(simulate={"fault": "rate_limit", "retry_after": 38.92}))

    assert response.status_code == 429
    assert "retry-after" not in response.headers
    assert response.json()["error"]["details"] == [
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "38.92s"}
    ]


def test_each_dialect_has_a_place_for_its_key(open_claude: OpenClaude, open_gemini: OpenGemini) -> None:
    with SimulatorThread(api_key="sesame") as simulator:
        refused = post(simulator, "anthropic", ask())
        message = open_claude(simulator, "sesame").messages.create(model="m", max_tokens=100, messages=HI)
        with pytest.raises(errors.ClientError) as caught:
            open_gemini(simulator, "other").models.generate_content(model="m", contents="Hi")
        response = open_gemini(simulator, "sesame").models.generate_content(model="m", contents="Hi")
        in_query = f"{simulator.root_url}/v1beta/models/m:generateContent?key=sesame"
        queried = httpx.post(in_query, json={"contents": [{"parts": [{"text": "Hi"}]}]}, trust_env=False)

        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        assert message.stop_reason == "end_turn"
        assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")
        assert "API_KEY_INVALID" in str(caught.value.details)
        assert response.text == queried.json()["candidates"][0]["content"]["parts"][0]["text"] == expected_text(ask())
        assert simulator.calls() == 3


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "system", "content": "Hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages.0.content.0"),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, "thinking.enabled.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "max_tokens"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tools": [{"name": "f", "input_schema": 5}]}, "tools.0.function.parameters"),
        ({"simulate": {"chunk": 1}}, "simulate.chunk"),
    ],
)
def test_anthropic_refuses_a_wrong_request_by_field(
    simulator: SimulatorThread, changed: dict[str, Any], field: str
) -> None:
    body = {"model": "m", "max_tokens": 1500, "messages": HI, **changed}

    response = httpx.post(
        f"{simulator.base_url}/messages", json=body, headers={"anthropic-version": "2023-06-01"}, trust_env=False
    )

    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(f"{field}: ")


def test_anthropic_wants_a_version(simulator: SimulatorThread) -> None:
    response = httpx.post(
        f"{simulator.base_url}/messages", json={"model": "m", "max_tokens": 9, "messages": HI}, trust_env=False
    )

    assert response.json()["error"]["message"] == "anthropic-version: header is required"


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"contents": []}, "contents"),
        ({"contents": "Hi"}, "contents"),
        ({"contents": [{"role": "assistant", "parts": [{"text": "Hi"}]}]}, "contents.0.role"),
        ({"generationConfig": {"maxOutputTokens": 0}}, "max_tokens"),
        (
            {"generationConfig": {"thinkingConfig": {"thinkingBudget": 1, "thinkingLevel": "low"}}},
            "generation_config.thinking_config",
        ),
        ({"toolConfig": {"functionCallingConfig": {"mode": "SOME"}}}, "tool_config.function_calling_config.mode"),
    ],
)
def test_gemini_refuses_a_wrong_request_by_field(
    simulator: SimulatorThread, changed: dict[str, Any], field: str
) -> None:
    body = {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}], **changed}

    response = httpx.post(f"{simulator.root_url}/v1beta/models/m:generateContent", json=body, trust_env=False)

    error = response.json()["error"]
    assert (response.status_code, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
    assert error["details"][0]["fieldViolations"][0]["field"] == field


@pytest.mark.parametrize("path", ["/v1beta/models/m:countCats", "/v1/messages/cats", "/v1/cats"])
def test_an_unknown_path_is_refused_in_the_shape_of_its_api(simulator: SimulatorThread, path: str) -> None:
    response = httpx.post(f"{simulator.root_url}{path}", json={}, trust_env=False)

    own = {"/v1beta": "status", "/v1/messages": "type", "/v1/cats": "param"}
    assert response.status_code == 404
    assert next(name for start, name in own.items() if path.startswith(start)) in response.json()["error"]


# ---- the next turn


@dialects
@streamed_or_not
def test_an_answer_with_thinking_and_calls_is_accepted_as_the_next_turn(
    simulator: SimulatorThread, dialect: Dialect, stream: bool
) -> None:
    request = ask(tools=[WEATHER], reasoning_effort="low", stream=stream,
                  simulate={"tool_calls": 2, "reasoning_chunks": 3})  # fmt: skip
    completion, _ = read(dialect, post(simulator, dialect, request).content)
    answered = json.loads(completion.to_json())["choices"][0]["message"]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "rain"} for call in answered["tool_calls"]]
    following = {**request, "messages": [*request["messages"], answered, *results], "simulate": {}}

    response = post(simulator, dialect, following)

    assert response.status_code == 200
    assert read(dialect, response.content)[0].text == expected_text(following)


@dialects
def test_what_was_signed_is_refused_with_another_signature(simulator: SimulatorThread, dialect: Dialect) -> None:
    answered: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [dict(CALLED)]}
    answered["thinking_blocks"] = [{"type": "thinking", "thinking": "Hm.", "signature": "forged"}]
    answered["tool_calls"][0]["extra_content"] = {"google": {"thought_signature": "Zm9yZ2Vk"}}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "rain"}

    response = post(simulator, dialect, turn({"role": "user", "content": "Hi"}, answered, result, tools=[WEATHER]))

    assert response.status_code == 400
    assert "ignature" in response.json()["error"]["message"]
