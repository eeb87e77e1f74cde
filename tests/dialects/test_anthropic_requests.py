"""chat.completions requests as Anthropic's Messages API takes them, judged by the types of Anthropic's own SDK."""

from __future__ import annotations

import base64
import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import anthropic.types.message_create_params as messages_api
import pytest
from pydantic import TypeAdapter
from pydantic_core import SchemaValidator

from tokentape.translation import translate

PDF = base64.b64encode(b"%PDF-1.4 ...").decode()
PNG = base64.b64encode(b"\x89PNG...").decode()
OLD, NEW = "claude-sonnet-4-5", "claude-opus-5"
#: Parameters that version 2023-06-01 of the API has, and the SDK's types, which are for a later one, have not.
SAMPLING = ("temperature", "top_p", "top_k")
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather at a place",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}


@cache
def request_type() -> SchemaValidator:
    """MessageCreateParams, refusing every key that it does not name."""
    return SchemaValidator(_strict(TypeAdapter(messages_api.MessageCreateParams).core_schema))


def _strict(schema: Any) -> Any:
    if isinstance(schema, list | tuple):
        return type(schema)(_strict(entry) for entry in schema)
    if not isinstance(schema, dict):
        return schema
    schema = {name: value if name == "metadata" else _strict(value) for name, value in schema.items()}
    match schema.get("type"):
        case "typed-dict" if schema.get("config", {}).get("extra_fields_behavior") != "allow":
            schema["extra_behavior"] = "forbid"
        case "model-fields":
            schema["extra_behavior"] = "forbid"
        case "model":
            schema["config"] = {**schema.get("config", {}), "extra_fields_behavior": "forbid"}
        case "generator":  # Iterable is looked into by nobody
            schema["type"] = "list"
        case _:
            pass
    return schema


def check_accepted(body: dict[str, Any]) -> None:
    """The SDK's own type takes the body, and the turns stand as the API wants them."""
    request_type().validate_python({name: value for name, value in body.items() if name not in SAMPLING})
    json.dumps(body, allow_nan=False)
    called: set[str] = set()
    for turn, following in zip(body["messages"], [*body["messages"][1:], None], strict=True):
        assert following is None or turn["role"] != following["role"]
        kinds = [block["type"] for block in turn["content"]]
        assert kinds
        assert kinds == sorted(kinds, key=lambda kind: "thinking" not in kind), "thinking comes first"
        results = {block["tool_use_id"] for block in turn["content"] if block["type"] == "tool_result"}
        assert results == called, "every call is answered in the turn after it"
        assert kinds[: len(results)] == ["tool_result"] * len(results)
        called = {block["id"] for block in turn["content"] if block["type"] == "tool_use"}


def ask(**fields: Any) -> dict[str, Any]:
    """A request with these fields."""
    return {"model": NEW, "messages": [{"role": "user", "content": "Hello"}], **fields}


def said(**fields: Any) -> dict[str, Any]:
    """The body of a translation, which is one that the SDK's types accept."""
    body = ask(**fields)
    before = copy.deepcopy(body)
    translation = translate("anthropic", body)
    assert translation.dropped == ()
    assert body == before
    check_accepted(translation.body)
    return translation.body


def said_to(content: Any) -> Any:
    """The blocks that a user's content becomes."""
    return said(messages=[{"role": "user", "content": content}])["messages"][0]["content"]


class TestTurns:
    def test_smallest_request_gets_the_limit_that_the_api_demands(self) -> None:
        assert translate("anthropic", ask()) == (
            "/messages",
            {
                "model": NEW,
                "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
                "max_tokens": 8192,
                "stream": True,
            },
            True,
            (),
        )
        assert translate("anthropic", ask(), default_max_tokens=77).body["max_tokens"] == 77

    def test_system_and_developer_turns_are_the_system_prompt_wherever_they_stood(self) -> None:
        body = said(
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hello"},
                {
                    "role": "developer",
                    "content": [{"type": "text", "text": "In French.", "cache_control": {"type": "ephemeral"}}],
                },
                {"role": "system", "content": ""},
                {"role": "user", "content": "And so on"},
            ]
        )

        assert body["system"] == [
            {"type": "text", "text": "Be brief."},
            {"type": "text", "text": "In French.", "cache_control": {"type": "ephemeral"}},
        ]
        assert body["messages"] == [
            {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "And so on"}]}
        ]

    def test_calls_and_their_results_take_turns(self) -> None:
        body = said(
            messages=[
                {"role": "user", "content": "Weather and time?"},
                {
                    "role": "assistant",
                    "content": "I look.",
                    "refusal": None,
                    "tool_calls": [
                        {
                            "id": "a",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"city": "Köln"}'},
                        },
                        {"id": "b", "type": "function", "function": {"name": "clock", "arguments": ""}},
                    ],
                },
                {"role": "tool", "tool_call_id": "a", "content": "rain"},
                {
                    "role": "tool",
                    "tool_call_id": "b",
                    "content": [{"type": "text", "text": "noon"}, {"type": "text", "text": ""}],
                },
                {"role": "user", "content": "Thanks"},
            ],
            tools=[WEATHER, CLOCK],
        )

        assert body["messages"][1:] == [
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Köln"}},
                    {"type": "tool_use", "id": "b", "name": "clock", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "a", "content": "rain"},
                    {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "noon"}]},
                    {"type": "text", "text": "Thanks"},
                ],
            },
        ]

    def test_result_may_be_empty_or_hold_an_image(self) -> None:
        call = {"type": "function", "function": {"name": "clock", "arguments": "{}"}}
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}

        body = said(
            messages=[
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": None, "tool_calls": [{"id": "a", **call}, {"id": "b", **call}]},
                {"role": "tool", "tool_call_id": "a", "content": ""},
                {"role": "tool", "tool_call_id": "b", "content": [image]},
            ]
        )

        empty, pictured = body["messages"][2]["content"]
        assert empty == {"type": "tool_result", "tool_use_id": "a"}
        assert [block["type"] for block in pictured["content"]] == ["image"]

    def test_id_of_another_vendor_becomes_one_that_the_api_takes(self) -> None:
        call = {"id": "functions.clock:0", "type": "function", "function": {"name": "clock", "arguments": "{}"}}

        body = said(
            messages=[
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "functions.clock:0", "content": "noon"},
            ]
        )

        assert body["messages"][1]["content"][0]["id"] == "functions_clock_0"
        assert body["messages"][2]["content"][0]["tool_use_id"] == "functions_clock_0"

    def test_refusal_is_sent_back_as_what_the_assistant_said(self) -> None:
        body = said(
            messages=[
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
                {"role": "user", "content": "Please"},
                {"role": "assistant", "content": None, "refusal": "Never."},
            ]
        )

        assert [turn["content"][0]["text"] for turn in body["messages"]] == ["Hello", "No.", "Please", "Never."]

    def test_cache_control_of_a_message_stands_on_its_last_block(self) -> None:
        mark = {"type": "ephemeral"}
        parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]

        body = said(
            messages=[
                {"role": "system", "content": "Be brief.", "cache_control": mark},
                {"role": "user", "content": parts, "cache_control": mark},
            ]
        )

        assert body["system"][0]["cache_control"] == mark
        assert ["cache_control" in block for block in body["messages"][0]["content"]] == [False, True]


class TestMedia:
    @pytest.mark.parametrize(
        ("part", "block"),
        [
            (
                {"type": "image_url", "image_url": {"url": "https://example.com/a", "detail": "auto"}},
                {"type": "image", "source": {"type": "url", "url": "https://example.com/a"}},
            ),
            (
                {"type": "image_url", "image_url": "http://example.com/a.png"},
                {"type": "image", "source": {"type": "url", "url": "http://example.com/a.png"}},
            ),
            (
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
            ),
            (
                {"type": "image_url", "image_url": {"url": f"data:application/pdf;base64,{PDF}"}},
                {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}},
            ),
            (
                {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PDF}"}},
                {
                    "type": "document",
                    "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
                    "title": "a.pdf",
                },
            ),
            (
                {"type": "file", "file": {"file_data": PDF}},
                {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}},
            ),
            *(
                (
                    {"type": "file", "file": {field: "https://arxiv.org/pdf/2301.00001"}},
                    {"type": "document", "source": {"type": "url", "url": "https://arxiv.org/pdf/2301.00001"}},
                )
                for field in ("file_data", "file_url", "file_id")
            ),
            (
                {"type": "file", "file": {"file_url": "https://example.com/a.PDF?page=2#top"}},
                {"type": "document", "source": {"type": "url", "url": "https://example.com/a.PDF?page=2#top"}},
            ),
            (
                {"type": "file", "file": {"file_url": "https://example.com/a.jpeg"}},
                {"type": "image", "source": {"type": "url", "url": "https://example.com/a.jpeg"}},
            ),
            (
                {"type": "file", "file": {"file_data": f"data:image/webp;base64,{PNG}"}},
                {"type": "image", "source": {"type": "base64", "media_type": "image/webp", "data": PNG}},
            ),
            (
                {"type": "file", "file": {"file_data": "data:text/plain;charset=utf-8;base64,w6Ri", "filename": "a"}},
                {
                    "type": "document",
                    "source": {"type": "text", "media_type": "text/plain", "data": "äb"},
                    "title": "a",
                },
            ),
        ],
    )  # fmt: skip
    def test_file_or_image_becomes_a_block(self, part: dict[str, Any], block: dict[str, Any]) -> None:
        mark = {"cache_control": {"type": "ephemeral"}}

        assert said_to([part]) == [block]
        assert said_to([{**part, **mark}]) == [{**block, **mark}]

    def test_example_with_a_pdf_is_translated(self) -> None:
        example = json.loads((Path(__file__).parents[2] / "examples" / "pdf.json").read_text())

        body = said(**example)

        document, question = body["messages"][0]["content"]
        assert document["source"]["media_type"] == "application/pdf"
        assert base64.b64decode(document["source"]["data"]).startswith(b"%PDF-")
        assert document["title"] == "tape.pdf"
        assert question["type"] == "text"
        assert body["max_tokens"] == 500


class TestSettings:
    @pytest.mark.parametrize(
        ("fields", "limit"),
        [
            ({"max_tokens": 5}, 5),
            ({"max_completion_tokens": 6}, 6),
            ({"max_completion_tokens": 6, "max_tokens": 6}, 6),
            ({"max_completion_tokens": None, "max_tokens": 7}, 7),
        ],
    )
    def test_limit(self, fields: dict[str, Any], limit: int) -> None:
        assert said(**fields)["max_tokens"] == limit

    def test_sampling_and_what_is_the_apis_own_are_sent_as_they_are(self) -> None:
        body = said(temperature=0.5, top_p=0.9, top_k=5, speed="fast", container=None, inference_geo="us")

        assert {name: body[name] for name in ("temperature", "top_p", "top_k", "speed", "inference_geo")} == {
            "temperature": 0.5, "top_p": 0.9, "top_k": 5, "speed": "fast", "inference_geo": "us",
        }  # fmt: skip
        assert "container" not in body

    @pytest.mark.parametrize(("stop", "sent"), [("END", ["END"]), (["a", "b\n"], ["a", "b\n"])])
    def test_stop(self, stop: Any, sent: list[str]) -> None:
        assert said(stop=stop)["stop_sequences"] == sent

    @pytest.mark.parametrize(("stream", "streamed"), [(None, True), (True, True), (False, False)])
    def test_stream(self, stream: bool | None, streamed: bool) -> None:
        translation = translate("anthropic", ask(stream=stream, stream_options={"include_usage": True}))

        assert (translation.streamed, translation.body["stream"]) == (streamed, streamed)
        assert "stream_options" not in translation.body

    @pytest.mark.parametrize(
        "fields",
        [{"user": "u"}, {"safety_identifier": "u"}, {"metadata": {"user_id": "u", "trace": None}},
         {"user": "u", "safety_identifier": "u", "metadata": {"user_id": "u"}}],
    )  # fmt: skip
    def test_name_of_the_user(self, fields: dict[str, Any]) -> None:
        assert said(**fields)["metadata"] == {"user_id": "u"}

    def test_service_tier(self) -> None:
        assert said(service_tier="default")["service_tier"] == "standard_only"
        assert "service_tier" not in said(service_tier="auto")

    def test_json_schema_is_the_output_format(self) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
        wanted = {"name": "answer", "strict": True, "schema": schema}

        body = said(response_format={"type": "json_schema", "json_schema": wanted})
        assert body["output_config"] == {"format": {"type": "json_schema", "schema": schema}}

        body = said(response_format={"type": "json_schema", "json_schema": {**wanted, "description": "What it is"}})
        assert body["output_config"]["format"]["schema"] == {**schema, "description": "What it is"}
        assert "output_config" not in said(response_format={"type": "text"})

    def test_n_is_asked_for_by_as_many_calls(self) -> None:
        assert said(n=3) == said()
