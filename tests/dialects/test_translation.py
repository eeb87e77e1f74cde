"""How a chat.completions request is said to Anthropic's and Gemini's APIs, and what is refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tokentape.errors import InvalidRequest
from tokentape.translation import Dialect, translate

EXAMPLE = Path(__file__).parents[2] / "examples" / "pdf.json"
TOOL = {"type": "function", "function": {"name": "f", "description": "does", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}


def body(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    turns = list(messages) or [{"role": "user", "content": "Hi"}]
    return {"model": fields.pop("model", "claude-sonnet-4-6"), "messages": turns, **fields}


def said(dialect: Dialect, request: dict[str, Any]) -> dict[str, Any]:
    return translate(dialect, request).body


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"max_tokens": 8192}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 6, "max_tokens": 6}, {"max_tokens": 6}),
        ({"stop": "x"}, {"stop_sequences": ["x"]}),
        ({"temperature": 0.5, "top_p": 0.9, "top_k": 3}, {"temperature": 0.5, "top_p": 0.9, "top_k": 3}),
        ({"user": "u"}, {"metadata": {"user_id": "u"}}),
        ({"service_tier": "default"}, {"service_tier": "standard_only"}),
        ({"response_format": FORMAT}, {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
        ({"tools": [TOOL]}, {"tools": [{"name": "f", "description": "does", "input_schema": {"type": "object"}}]}),
        ({"tools": [TOOL], "tool_choice": "required"}, {"tool_choice": {"type": "any"}}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            {"tool_choice": {"type": "tool", "name": "f"}},
        ),
        (
            {"tools": [TOOL], "parallel_tool_calls": False},
            {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        ),
        (
            {"reasoning_effort": "high"},
            {"thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "high"}},
        ),
        (
            {"reasoning_effort": "low", "model": "claude-3-7-sonnet-20250219"},
            {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 9216},
        ),
        ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        ({"web_search_options": {}}, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
    ],
    ids=str,
)
def test_field_is_said_to_anthropic(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    wire = said("anthropic", body(**fields))

    assert {name: wire.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 5}, {"maxOutputTokens": 5}),
        ({"stop": ["x"]}, {"stopSequences": ["x"]}),
        ({"temperature": 0.5, "top_p": 0.9, "seed": 1}, {"temperature": 0.5, "topP": 0.9, "seed": 1}),
        ({"n": 2}, {"candidateCount": 2}),
        ({"logprobs": True, "top_logprobs": 2}, {"responseLogprobs": True, "logprobs": 2}),
        ({"response_format": {"type": "json_object"}}, {"responseMimeType": "application/json"}),
        (
            {"response_format": FORMAT},
            {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA},
        ),
        (
            {"reasoning_effort": "low", "model": "gemini-2.5-flash"},
            {"thinkingConfig": {"thinkingBudget": 1024, "includeThoughts": True}},
        ),
        (
            {"reasoning_effort": "low", "model": "gemini-3-pro"},
            {"thinkingConfig": {"thinkingLevel": "low", "includeThoughts": True}},
        ),
    ],
    ids=str,
)
def test_field_is_said_to_gemini(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert said("gemini", body(**fields))["generationConfig"] == expected


CALL = {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "user", "content": "there"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{**CALL, "extra_content": {"google": {"thought_signature": "sig"}}}],
        "thinking_blocks": [{"index": 0, "type": "thinking", "thinking": "hm", "signature": "sig"}],
    },
    {"role": "tool", "tool_call_id": "toolu_1", "content": '{"b": 2}'},
    {"role": "developer", "content": "Be kind."},
]


def test_turns_are_said_to_anthropic_with_signed_thinking_first() -> None:
    wire = said("anthropic", body(*TURNS))

    assert wire["system"] == [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]
    assert wire["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "sig"},
                {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": '{"b": 2}'}]},
    ]


def test_turns_are_said_to_gemini_with_the_signature_of_the_call() -> None:
    wire = said("gemini", body(*TURNS))

    assert wire["systemInstruction"] == {"parts": [{"text": "Be brief."}, {"text": "Be kind."}]}
    assert wire["contents"] == [
        {"role": "user", "parts": [{"text": "Hi"}, {"text": "there"}]},
        {
            "role": "model",
            "parts": [
                {"functionCall": {"id": "toolu_1", "name": "f", "args": {"a": 1}}, "thoughtSignature": "sig"},
            ],
        },
        {
            "role": "user",
            "parts": [{"functionResponse": {"id": "toolu_1", "name": "f", "response": {"b": 2}}}],
        },
    ]


def test_pdf_goes_to_both_apis() -> None:
    request = json.loads(EXAMPLE.read_bytes())
    data = request["messages"][0]["content"][0]["file"]["file_data"].partition(",")[2]

    (claude,) = said("anthropic", request)["messages"]
    (gemini,) = said("gemini", request)["contents"]

    assert base64.b64decode(data).startswith(b"%PDF-")
    assert claude["content"][0] == {
        "type": "document",
        "source": {"type": "base64", "media_type": "application/pdf", "data": data},
        "title": "tape.pdf",
    }
    assert gemini["parts"][0] == {"inlineData": {"mimeType": "application/pdf", "data": data}}


def test_files_and_images_go_by_url() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "file", "file": {"file_url": "https://example.org/b.pdf"}},
    ]
    request = body({"role": "user", "content": parts})

    assert said("anthropic", request)["messages"][0]["content"] == [
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        {"type": "document", "source": {"type": "url", "url": "https://example.org/b.pdf"}},
    ]
    assert said("gemini", request)["contents"][0]["parts"] == [
        {"fileData": {"fileUri": "https://example.org/a.png", "mimeType": "image/png"}},
        {"fileData": {"fileUri": "https://example.org/b.pdf", "mimeType": "application/pdf"}},
    ]


AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
UNSUPPORTED: list[tuple[Dialect, dict[str, Any], str]] = [
    ("anthropic", body(logprobs=True), "logprobs"),
    ("anthropic", body(seed=1), "seed"),
    ("anthropic", body(presence_penalty=0.5), "presence_penalty"),
    ("anthropic", body(temperature=1.5), "temperature"),
    ("anthropic", body(stop=["a", " "]), "stop.1"),
    ("anthropic", body(response_format={"type": "json_object"}), "response_format.type"),
    ("anthropic", body(tools=[{"type": "custom", "custom": {"name": "c"}}]), "tools.0.type"),
    ("anthropic", body(metadata={"order": "1"}), "metadata.order"),
    ("anthropic", body({"role": "user", "content": [AUDIO]}), "messages.0.content.0.type"),
    ("anthropic", body({"role": "user", "content": "Hi", "name": "Ann"}), "messages.0.name"),
    ("gemini", body(logit_bias={"1": 2}), "logit_bias"),
    ("gemini", body(user="u"), "user"),
    ("gemini", body(parallel_tool_calls=False), "parallel_tool_calls"),
    ("gemini", body(reasoning_effort="none", model="gemini-3-pro"), "reasoning_effort"),
]


@pytest.mark.parametrize(("dialect", "request_body", "field"), UNSUPPORTED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_said_is_refused_by_its_name_or_dropped_by_choice(
    dialect: Dialect, request_body: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        translate(dialect, request_body)

    assert caught.value.field == field
    assert translate(dialect, request_body, drop_unsupported=True).dropped == (field,)


@pytest.mark.parametrize("dialect", ["anthropic", "gemini"])
def test_nulls_and_written_out_defaults_ask_for_nothing(dialect: Dialect) -> None:
    nothing = {"n": 1, "logprobs": False, "logit_bias": None, "store": False, "frequency_penalty": 0, "seed": None}

    assert said(dialect, body(**nothing)) == said(dialect, body())


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,@@"}}, "messages.0.content.0.image_url.url"),
        ({"type": "text"}, "messages.0.content.0.text"),
    ],
)
@pytest.mark.parametrize("dialect", ["anthropic", "gemini"])
def test_part_that_is_wrong_is_refused_whatever_may_be_dropped(
    dialect: Dialect, part: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        translate(dialect, body({"role": "user", "content": [part]}), drop_unsupported=True)

    assert caught.value.field == field
