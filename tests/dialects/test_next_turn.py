"""An answer with tools and thinking, sent back as the next turn: through the adapter that read it, the fold that a
client sees, and the translation, to a body that the vendor's own types accept, with every signature word for word."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai.types.chat
import pytest

from tokentape.completion import ChatCompletion, fold
from tokentape_worker.dialects import Adapter, Call
from tokentape_worker.dialects.anthropic import AnthropicAdapter
from tokentape_worker.dialects.gemini import GeminiAdapter

from . import test_anthropic_requests as anthropic
from . import test_gemini_requests as gemini

MessageOf = Callable[[ChatCompletion], dict[str, Any]]


def _as_openai_reads_it(completion: ChatCompletion) -> dict[str, Any]:
    read = openai.types.chat.ChatCompletion.model_validate_json(completion.to_json())
    return read.choices[0].message.model_dump()


#: How a client may come by the message that it sends back.
by_any_client = pytest.mark.parametrize(
    "message_of",
    [
        lambda completion: completion.choices[0].message.model_dump(exclude_unset=True),
        lambda completion: completion.choices[0].message.model_dump(),
        lambda completion: json.loads(completion.to_json())["choices"][0]["message"],
        _as_openai_reads_it,
    ],
    ids=["set", "all", "json", "openai"],
)


def read(adapter: Adapter, events: list[dict[str, Any]]) -> ChatCompletion:
    """What a client gets of an answer streamed in these events."""
    pieces = adapter.feed(b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events))
    rest, verdict = adapter.close()
    assert verdict.completed
    return fold(piece.chunk for piece in (*pieces, *rest))


def block(place: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of one content block of Anthropic's."""
    return [
        {"type": "content_block_start", "index": place, "content_block": start},
        *({"type": "content_block_delta", "index": place, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": place},
    ]


ANTHROPIC_ANSWER: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant", "model": "m"}},
    *block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Let me "},
        {"type": "thinking_delta", "thinking": "look\u2028 it up. "},
        {"type": "signature_delta", "signature": "EqoB+/=ck=="},
    ),
    *block(1, {"type": "redacted_thinking", "data": "opaque+/=="}),
    *block(
        2,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "signature_delta", "signature": "of a thought that is not shown"},
    ),
    *block(3, {"type": "text", "text": ""}, {"type": "text_delta", "text": "I look."}),
    *block(
        4,
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"city": '},
        {"type": "input_json_delta", "partial_json": '"Ulm"}'},
    ),
    *block(5, {"type": "tool_use", "id": "toolu_2", "name": "clock", "input": {}}),
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
    {"type": "message_stop"},
]


class TestAnthropic:
    @by_any_client
    def test_answer_with_its_results_is_accepted_with_its_thinking_first_and_in_order(
        self, message_of: MessageOf
    ) -> None:
        message = message_of(read(AnthropicAdapter(Call("job_1", "m", 1)), ANTHROPIC_ANSWER))
        assert message["reasoning_content"] == "Let me look\u2028 it up. "

        body = anthropic.said(
            messages=[
                {"role": "user", "content": "Weather and time?"},
                message,
                {"role": "tool", "tool_call_id": "toolu_1", "content": "rain"},
                {"role": "tool", "tool_call_id": "toolu_2", "content": "noon"},
            ],
            tools=[anthropic.WEATHER, anthropic.CLOCK],
            reasoning_effort="high",
        )

        assert body["messages"][1]["content"] == [
            {"type": "thinking", "thinking": "Let me look\u2028 it up. ", "signature": "EqoB+/=ck=="},
            {"type": "redacted_thinking", "data": "opaque+/=="},
            {"type": "thinking", "thinking": "", "signature": "of a thought that is not shown"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Ulm"}},
            {"type": "tool_use", "id": "toolu_2", "name": "clock", "input": {}},
        ]

    def test_thinking_that_nobody_signed_is_not_sent_back(self) -> None:
        message = {
            "role": "assistant",
            "content": "Yes",
            "reasoning_content": "Hm",
            "thinking_blocks": [{"type": "thinking", "thinking": "Hm"}],
            "extra_content": {"google": {"thought_signature": "of another vendor"}},
        }

        body = anthropic.said(
            messages=[{"role": "user", "content": "Hello"}, message, {"role": "user", "content": "Sure?"}]
        )

        assert body["messages"][1]["content"] == [{"type": "text", "text": "Yes"}]


def candidate(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A response of Gemini's with these parts."""
    return {"responseId": "r", "candidates": [{"content": {"role": "model", "parts": list(parts)}, **fields}]}


class TestGemini:
    @by_any_client
    def test_signatures_stand_on_the_calls_that_they_came_with(self, message_of: MessageOf) -> None:
        answer = [
            candidate({"text": "Let me look. ", "thought": True}),
            candidate({"text": "I look."}),
            candidate(
                {
                    "functionCall": {"id": "g1", "name": "weather", "args": {"city": "Köln"}},
                    "thoughtSignature": "c2ln+/8=",
                },
                {"functionCall": {"name": "clock"}},
                finishReason="STOP",
            ),
        ]
        completion = read(GeminiAdapter(Call("job_1", "m", 1)), answer)
        message = message_of(completion)
        assert message["reasoning_content"] == "Let me look. "
        first, second = (call["id"] for call in message["tool_calls"])

        body = gemini.said(
            messages=[
                {"role": "user", "content": "Weather and time?"},
                message,
                {"role": "tool", "tool_call_id": first, "content": '{"sky": "rain"}'},
                {"role": "tool", "tool_call_id": second, "content": "noon"},
            ],
            tools=[gemini.WEATHER, gemini.CLOCK],
        )

        assert body["contents"][1:] == [
            {
                "role": "model",
                "parts": [
                    {"text": "I look."},
                    {
                        "functionCall": {"id": "g1", "name": "weather", "args": {"city": "Köln"}},
                        "thoughtSignature": "c2ln+/8=",
                    },
                    {"functionCall": {"name": "clock", "args": {}}},
                ],
            },
            {
                "role": "user",
                "parts": [
                    {"functionResponse": {"id": "g1", "name": "weather", "response": {"sky": "rain"}}},
                    {"functionResponse": {"name": "clock", "response": {"result": "noon"}}},
                ],
            },
        ]

    @by_any_client
    @pytest.mark.parametrize(
        ("answer", "parts"),
        [
            (
                [
                    candidate({"text": "Hello"}),
                    candidate({"text": "", "thoughtSignature": "c2ln"}, finishReason="STOP"),
                ],
                [{"text": "Hello", "thoughtSignature": "c2ln"}],
            ),
            (
                [candidate({"text": "", "thoughtSignature": "c2ln"}, finishReason="STOP")],
                [{"text": "", "thoughtSignature": "c2ln"}],
            ),
        ],
    )
    def test_signature_of_the_message_stands_on_its_last_text(
        self, message_of: MessageOf, answer: list[dict[str, Any]], parts: list[dict[str, Any]]
    ) -> None:
        message = message_of(read(GeminiAdapter(Call("job_1", "m", 1)), answer))

        body = gemini.said(
            messages=[{"role": "user", "content": "Hello"}, message, {"role": "user", "content": "Go on"}]
        )

        assert body["contents"][1] == {"role": "model", "parts": parts}

    def test_answer_of_another_vendor_goes_on_here(self) -> None:
        message = read(AnthropicAdapter(Call("job_1", "m", 1)), ANTHROPIC_ANSWER).choices[0].message

        body = gemini.said(
            messages=[
                {"role": "user", "content": "Weather and time?"},
                message.model_dump(),
                {"role": "tool", "tool_call_id": "toolu_1", "content": "rain"},
                {"role": "tool", "tool_call_id": "toolu_2", "content": "noon"},
            ]
        )

        assert [next(iter(part)) for part in body["contents"][1]["parts"]] == ["text", "functionCall", "functionCall"]
