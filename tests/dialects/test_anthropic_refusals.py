"""What Anthropic's Messages API cannot be asked: refused by the field's name, or left out and named."""

from __future__ import annotations

from typing import Any

import pytest

from tokentape import InvalidRequest
from tokentape.translation import Translation, translate

from .test_anthropic_requests import CLOCK, OLD, PDF, PNG, ask, check_accepted


def dropped(**fields: Any) -> Translation:
    """A translation that leaves out what cannot be said."""
    translation = translate("anthropic", ask(**fields), drop_unsupported=True)
    check_accepted(translation.body)
    return translation


def _file(**file: Any) -> list[Any]:
    return [{"role": "user", "content": [{"type": "text", "text": "Read"}, {"type": "file", "file": file}]}]


def _image(**image: Any) -> list[Any]:
    return [{"role": "user", "content": [{"type": "text", "text": "See"}, {"type": "image_url", "image_url": image}]}]


def _then(*messages: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": "Hello"}, *messages]


CUSTOM_CALL = {"id": "c", "type": "custom", "custom": {"name": "x", "input": "y"}}
CANNOT_BE_SAID: list[tuple[str, dict[str, Any]]] = [
    ("audio", {"audio": {"voice": "alloy", "format": "wav"}}),
    ("frequency_penalty", {"frequency_penalty": 0.1}),
    ("function_call", {"function_call": {"name": "clock"}}),
    ("functions", {"functions": [{"name": "clock"}]}),
    ("logit_bias", {"logit_bias": {"50256": -100}}),
    ("logprobs", {"logprobs": True}),
    ("modalities", {"modalities": ["text", "audio"]}),
    ("moderation", {"moderation": {"model": "m"}}),
    ("prediction", {"prediction": {"type": "content", "content": "x"}}),
    ("presence_penalty", {"presence_penalty": -1}),
    ("prompt_cache_key", {"prompt_cache_key": "k"}),
    ("prompt_cache_options", {"prompt_cache_options": {"mode": "explicit"}}),
    ("prompt_cache_retention", {"prompt_cache_retention": "24h"}),
    ("seed", {"seed": 0}),
    ("store", {"store": True}),
    ("top_logprobs", {"top_logprobs": 2}),
    ("verbosity", {"verbosity": "low"}),
    ("temperature", {"temperature": 1.5}),
    ("max_tokens", {"max_tokens": 5, "max_completion_tokens": 6}),
    ("stop", {"stop": " \n"}),
    ("stop.1", {"stop": ["END", "\n"]}),
    ("service_tier", {"service_tier": "flex"}),
    ("service_tier", {"service_tier": {"a": 1}}),
    ("metadata.trace", {"metadata": {"user_id": "u", "trace": "t"}}),
    ("user", {"user": "a", "safety_identifier": "b"}),
    ("safety_identifier", {"safety_identifier": "b", "metadata": {"user_id": "c"}}),
    ("response_format.type", {"response_format": {"type": "json_object"}}),
    ("response_format.type", {"response_format": {"type": "grammar"}}),
    (
        "response_format.json_schema.description",
        {"response_format": {"type": "json_schema",
                             "json_schema": {"name": "a", "schema": {"description": "a"}, "description": "b"}}},
    ),
    ("response_format", {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
                         "output_config": {"format": {"type": "json_schema", "schema": {"type": "array"}}}}),
    ("reasoning_effort", {"reasoning_effort": "enormous"}),
    ("reasoning_effort", {"reasoning_effort": ["high"]}),
    ("reasoning_effort", {"reasoning_effort": "high", "model": OLD, "max_tokens": 1024}),
    ("reasoning_effort", {"reasoning_effort": "high", "thinking": {"type": "enabled", "budget_tokens": 2000}}),
    ("reasoning_effort", {"reasoning_effort": "high", "output_config": {"effort": "low"}}),
    ("stop_sequences", {"stop": "a", "stop_sequences": ["b"]}),
    ("tools.1.type", {"tools": [CLOCK, {"type": "custom", "custom": {"name": "x"}}]}),
    ("tools.0.shade", {"tools": [{**CLOCK, "shade": 1}]}),
    ("tools.0.function.shade", {"tools": [{"type": "function", "function": {"name": "clock", "shade": 1}}]}),
    ("tool_choice", {"tool_choice": "required"}),
    ("tool_choice", {"tool_choice": {"type": "function", "function": {"name": "clock"}}}),
    ("tool_choice", {"tool_choice": "whatever", "tools": [CLOCK]}),
    ("tool_choice.type", {"tool_choice": {"type": "custom", "custom": {"name": "x"}}, "tools": [CLOCK]}),
    ("tool_choice.allowed_tools",
     {"tools": [CLOCK], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}}),
    ("tool_choice.function.name",
     {"tool_choice": {"type": "function", "function": {"name": "weather"}}, "tools": [CLOCK]}),
    (
        "tool_choice.allowed_tools.tools.1.type",
        {"tools": [CLOCK], "tool_choice": {"type": "allowed_tools", "allowed_tools": {
            "mode": "auto", "tools": [CLOCK, {"type": "custom", "custom": {"name": "x"}}]}}},
    ),
    ("web_search_options.search_context_size", {"web_search_options": {"search_context_size": "huge"}}),
    ("web_search_options.filters", {"web_search_options": {"filters": {"allowed_domains": ["a"]}}}),
    ("messages.0.name", {"messages": [{"role": "user", "name": "Ann", "content": "Hello"}]}),
    ("messages.0.shade", {"messages": [{"role": "user", "shade": 1, "content": "Hello"}]}),
    ("messages.1.role", {"messages": _then({"role": "function", "name": "f", "content": "x"})}),
    ("messages.1.role", {"messages": _then({"role": ["user"], "content": "x"})}),
    ("messages.1.audio", {"messages": _then({"role": "assistant", "audio": {"id": "a"}})}),
    ("messages.1.function_call",
     {"messages": _then({"role": "assistant", "content": "x", "function_call": {"name": "f", "arguments": "{}"}})}),
    ("messages.1.tool_calls.0.type", {"messages": _then({"role": "assistant", "tool_calls": [CUSTOM_CALL]})}),
    ("messages.1.tool_call_id", {"messages": _then({"role": "tool", "tool_call_id": "none", "content": "x"})}),
    ("messages.1.content.0.type",
     {"messages": _then({"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "https://a"}}]})}),
    ("messages.1.content.0.type",
     {"messages": _then({"role": "system", "content": [{"type": "image_url", "image_url": {"url": "https://a"}}]})}),
    (
        "messages.0.content.1.type",
        {"messages": [{"role": "user", "content": [
            {"type": "text", "text": "x"}, {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}]}]},
    ),
    (
        "messages.0.content.0.prompt_cache_breakpoint",
        {"messages": [{"role": "user", "content": [
            {"type": "text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit"}}]}]},
    ),
    ("messages.0.content.1.image_url.detail", {"messages": _image(url="https://a", detail="low")}),
    ("messages.0.content.1.image_url.shade", {"messages": _image(url="https://a", shade=1)}),
    ("messages.0.content.1.image_url.url", {"messages": _image(url=f"data:image/svg+xml;base64,{PNG}")}),
    ("messages.0.content.1.image_url.url", {"messages": _image(url="gs://bucket/a.png")}),
    ("messages.0.content.1.file.file_id", {"messages": _file(file_id="file-abc")}),
    ("messages.0.content.1.file.file_id", {"messages": _file(file_id="file-abc", file_data=PDF)}),
    ("messages.0.content.1.file.file_data", {"messages": _file(file_data=f"data:application/zip;base64,{PNG}")}),
    ("messages.0.content.1.file.file_url", {"messages": _file(file_url="https://example.com/a.csv")}),
]  # fmt: skip


class TestWhatCannotBeSaid:
    @pytest.mark.parametrize(("field", "fields"), CANNOT_BE_SAID)
    def test_it_is_refused_by_its_field(self, field: str, fields: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequest) as refused:
            translate("anthropic", ask(**fields))

        assert refused.value.field == field
        assert str(refused.value).startswith(f"{field}: ")

    @pytest.mark.parametrize(("field", "fields"), CANNOT_BE_SAID)
    def test_it_is_left_out_and_named_where_the_upstream_drops(self, field: str, fields: dict[str, Any]) -> None:
        assert dropped(**fields).dropped == (field,)

    def test_the_result_of_a_call_that_was_dropped_is_dropped_with_it(self) -> None:
        messages = _then(
            {"role": "assistant", "content": "I look.", "tool_calls": [CUSTOM_CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "z"},
        )

        translation = dropped(messages=messages)

        assert translation.dropped == ("messages.1.tool_calls.0.type", "messages.2.tool_call_id")
        assert [turn["role"] for turn in translation.body["messages"]] == ["user", "assistant"]

    @pytest.mark.parametrize(
        ("field", "fields"),
        [
            ("model", {"model": None}),
            ("messages", {"messages": "Hello"}),
            ("messages", {"messages": ["Hello"]}),
            ("messages.0.content", {"messages": [{"role": "user", "content": {"type": "text", "text": "x"}}]}),
            ("messages.0.content.0", {"messages": [{"role": "user", "content": [{"text": "x"}]}]}),
            ("messages.0.content.0.text", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
            ("messages.0.content.1.file", {"messages": _file(filename="a.pdf")}),
            ("messages.0.content.1.file.file_data", {"messages": _file(file_data="AAAA", filename="a")}),
            ("messages.0.content.1.file.file_data", {"messages": _file(file_data="data:application/pdf;base64,%%%")}),
            ("messages.0.content.1.file.file_data", {"messages": _file(file_data="data:text/plain;base64,/w==")}),
            ("messages.0.content.1.image_url.url", {"messages": _image()}),
            ("messages.1.tool_call_id", {"messages": _then({"role": "tool", "content": "x"})}),
            ("messages.1.refusal", {"messages": _then({"role": "assistant", "refusal": 1})}),
            (
                "messages.1.tool_calls.0.function.arguments",
                {"messages": _then({"role": "assistant", "tool_calls": [
                    {"id": "a", "function": {"name": "f", "arguments": '{"a": NaN}'}}]})},
            ),
            ("tools", {"tools": {"type": "function"}}),
            ("tools.0.function", {"tools": [{"type": "function", "name": "flat"}]} | {"tools": [{"type": "function"}]}),
            ("tools.0.function.name", {"tools": [{"function": {}}]}),
            ("tools.0.function.parameters", {"tools": [{"function": {"name": "f", "parameters": "x"}}]}),
            ("tool_choice.allowed_tools", {"tools": [CLOCK], "tool_choice": {"type": "allowed_tools"}}),
            ("stop", {"stop": 5}),
            ("stop", {"stop": ["a", 5]}),
            ("metadata", {"metadata": "u"}),
            ("web_search_options", {"web_search_options": True}),
            ("response_format", {"response_format": "json"}),
            ("response_format.json_schema", {"response_format": {"type": "json_schema"}}),
            ("thinking", {"thinking": True}),
            ("output_config", {"output_config": "x"}),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("drop", [False, True])
    def test_nonsense_is_refused_also_where_the_upstream_drops(
        self, field: str, fields: dict[str, Any], drop: bool
    ) -> None:
        with pytest.raises(InvalidRequest) as refused:
            translate("anthropic", ask(**fields), drop_unsupported=drop)

        assert refused.value.field == field
