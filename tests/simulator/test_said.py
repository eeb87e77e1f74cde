"""A request is the same request in every dialect that it is translated to."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any, Literal
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentape.answer import answer, request_digest
from tokentape.errors import InvalidRequest
from tokentape.said import said
from tokentape.simulator_anthropic import Anthropic
from tokentape.simulator_dialects import Posted, SimulatedDialect
from tokentape.simulator_gemini import Gemini
from tokentape.translation import translate

Dialect = Literal["anthropic", "gemini"]
DIALECTS: dict[Dialect, SimulatedDialect] = {"anthropic": Anthropic(), "gemini": Gemini()}
dialects = pytest.mark.parametrize("dialect", DIALECTS)

PDF = base64.b64encode(b"%PDF-1.7 \xe2\xe3").decode()

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
parts = st.one_of(
    texts.map(lambda text: {"type": "text", "text": text}),
    st.sampled_from(
        [
            {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}},
            {"type": "image_url", "image_url": {"url": "data:IMAGE/png;base64,aG k="}},
            {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PDF}", "filename": "a.pdf"}},
            {"type": "file", "file": {"file_data": "data:text/plain;base64,aGk", "filename": "a.txt"}},
        ]
    ),
)
asking = st.builds(
    lambda role, content: [{"role": role, "content": content}],
    st.sampled_from(["user", "system", "developer"]),
    texts,
)
showing = st.lists(parts, max_size=3).map(lambda content: [{"role": "user", "content": content}])
answering = texts.map(lambda text: [{"role": "assistant", "content": text}])


@st.composite
def calling(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A turn with calls, and the results that have to follow."""
    arguments = st.dictionaries(texts, json_values, max_size=3).map(json.dumps)
    calls = [
        {"id": f"call_{number}", "type": "function", "function": {"name": "f", "arguments": draw(arguments)}}
        for number in range(draw(st.integers(1, 3)))
    ]
    results = texts | json_values.map(json.dumps)
    return [
        {"role": "assistant", "content": draw(st.none() | texts), "tool_calls": calls},
        *({"role": "tool", "tool_call_id": call["id"], "content": draw(results)} for call in calls),
    ]


conversations = st.lists(asking | showing | answering | calling(), max_size=6).map(
    lambda turns: [message for turn in [*turns, [{"role": "user", "content": "Hi"}]] for message in turn]
)


def read(dialect: Dialect, request: dict[str, Any]) -> dict[str, Any]:
    """The request as the simulator understands its translation."""
    path, body, streamed, _ = translate(dialect, request)
    query = {"alt": "sse"} if streamed else {}
    posted = Posted(unquote(f"/v1{path}"), query, {"anthropic-version": "2023-06-01"}, json.loads(json.dumps(body)))
    return DIALECTS[dialect].read(posted).request


@dialects
@given(messages=conversations)
def test_a_conversation_says_the_same_after_its_translation(dialect: Dialect, messages: list[dict[str, Any]]) -> None:
    request = {"model": "m", "messages": messages}

    asked = read(dialect, request)

    assert said(asked["messages"]) == said(messages)
    assert request_digest(asked) == request_digest(request)


@dialects
@pytest.mark.parametrize("model", ["m", "models/m", "google/gemini-2.5", "a:free", "ü 1"])
def test_a_model_has_the_same_name_after_its_translation(dialect: Dialect, model: str) -> None:
    request = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}

    assert request_digest(read(dialect, request)) == request_digest(request)


@dialects
def test_what_is_asked_for_is_the_same_after_its_translation(dialect: Dialect) -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    tools = [{"type": "function", "function": function}, {"type": "function", "function": {"name": "g"}}]
    named = {"type": "function", "function": {"name": "g"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named]}}
    for choice in ("auto", "required", "none", named, allowed):
        for simulate in ({}, {"tool_calls": 3}):
            request = {
                "model": "m",
                "messages": [{"role": "user", "content": "Hi"}],
                "tools": tools,
                "tool_choice": choice,
                "max_tokens": 40,
                "simulate": simulate,
            }

            asked = read(dialect, request)

            assert answer(asked).choices == answer(request).choices


def test_plain_texts_that_take_turns_are_said_as_they_are() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]

    assert said(messages) == messages


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": ["Hi", {"type": "image_url", "image_url": {"url": "data:image/png,raw"}}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": 3}, 4, {"type": "file"}]}],
        [{"role": "user", "content": {"a": 1}}],
        [{"role": "assistant", "tool_calls": [{"type": "custom"}, 5]}, {"role": "tool", "content": None}],
        [{"role": "assistant", "tool_calls": 7, "function_call": {"name": "f"}}],
        [{"role": "tool", "content": '{"a": NaN}'}, {"role": "tool", "content": '"\\ud800"'}],
        [{"content": "nobody"}, {"role": ["odd"]}],
    ],
)
def test_what_is_malformed_is_said_all_the_same(messages: list[dict[str, Any]]) -> None:
    request = {"model": "m", "messages": messages}

    assert answer(request).digest == request_digest(request)
    assert request_digest(request) != request_digest({"model": "m", "messages": []})


NATIVE: dict[Dialect, dict[str, Any]] = {
    dialect: json.loads(
        json.dumps(
            translate(
                dialect,
                {
                    "model": "m",
                    "messages": [
                        {"role": "system", "content": "Be brief."},
                        {"role": "user", "content": [{"type": "file", "file": {"file_data": PDF}}]},
                        {"role": "assistant", "tool_calls": [
                            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                        ]},
                        {"role": "tool", "tool_call_id": "a", "content": "Hi"},
                    ],
                    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
                    "tool_choice": "required",
                    "reasoning_effort": "low",
                    "simulate": {"chunks": 3},
                },
            ).body
        )
    )
    for dialect in DIALECTS
}  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each place in a JSON value where something stands: the list or object, and the index or name."""
    inner = (
        list(value.items() if isinstance(value, dict) else enumerate(value)) if isinstance(value, dict | list) else []
    )
    return [place for name, entry in inner for place in [(value, name), *places(entry)]]


@dialects
@given(data=st.data())
def test_a_broken_body_is_refused_or_answered_and_nothing_worse(dialect: Dialect, data: st.DataObject) -> None:
    body = json.loads(json.dumps(NATIVE[dialect]))
    holder, name = data.draw(st.sampled_from(places(body)))
    holder[name] = data.draw(json_values)
    posted = Posted("/v1beta/models/m:generateContent", {}, {"anthropic-version": "2023-06-01"}, body)

    with contextlib.suppress(InvalidRequest):
        asked = DIALECTS[dialect].read(posted)
        planned = answer(asked.request)
        wire = asked.wire(planned)
        assert all(isinstance(wire.packet(chunk), bytes) for chunk in planned.chunks())
        assert wire.whole()
