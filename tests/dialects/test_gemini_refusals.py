"""What Gemini's generateContent cannot be asked: refused by the field's name, or left out and named."""

from __future__ import annotations

from typing import Any

import pytest

from tokentape import InvalidRequest
from tokentape.translation import Translation, translate

from .test_gemini_requests import CLOCK, NEW, PDF, PNG, ask, check_accepted


def dropped(**fields: Any) -> Translation:
    """A translation that leaves out what cannot be said."""
    translation = translate("gemini", ask(**fields), drop_unsupported=True)
    check_accepted(translation.body)
    return translation


def _part(kind: str, **value: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": "Look"}, {"type": kind, kind: value}]
    return {"messages": [{"role": "user", "content": content}]}


def _then(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hello"}, *messages]}


CALL = {"id": "a", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
CUSTOM_CALL = {"id": "c", "type": "custom", "custom": {"name": "x", "input": "y"}}
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
CANNOT_BE_SAID: list[tuple[str, dict[str, Any]]] = [
    ("audio", {"audio": {"voice": "alloy", "format": "wav"}}),
    ("function_call", {"function_call": {"name": "clock"}}),
    ("functions", {"functions": [{"name": "clock"}]}),
    ("logit_bias", {"logit_bias": {"50256": -100}}),
    ("modalities", {"modalities": ["text", "audio"]}),
    ("moderation", {"moderation": {"model": "m"}}),
    ("parallel_tool_calls", {"parallel_tool_calls": False, "tools": [CLOCK]}),
    ("prediction", {"prediction": {"type": "content", "content": "x"}}),
    ("prompt_cache_key", {"prompt_cache_key": "k"}),
    ("prompt_cache_options", {"prompt_cache_options": {"mode": "explicit"}}),
    ("prompt_cache_retention", {"prompt_cache_retention": "24h"}),
    ("safety_identifier", {"safety_identifier": "u"}),
    ("user", {"user": "u"}),
    ("verbosity", {"verbosity": "low"}),
    ("max_tokens", {"max_tokens": 5, "max_completion_tokens": 6}),
    ("service_tier", {"service_tier": "scale"}),
    ("service_tier", {"service_tier": ["flex"]}),
    ("metadata.Team", {"metadata": {"Team": "a"}}),
    ("metadata.team", {"metadata": {"team": "A b"}}),
    ("metadata.team", {"metadata": {"team": 1}}),
    ("labels", {"metadata": {"team": "a"}, "labels": {"team": "b"}}),
    ("response_format.type", {"response_format": {"type": "grammar"}}),
    ("response_format", {"response_format": {"type": "json_object"},
                         "generationConfig": {"responseMimeType": "text/plain"}}),
    ("temperature", {"temperature": 1, "generationConfig": {"temperature": 0.5}}),
    ("reasoning_effort", {"reasoning_effort": "none", "model": NEW}),
    ("reasoning_effort", {"reasoning_effort": "enormous"}),
    ("reasoning_effort", {"reasoning_effort": {"effort": "low"}}),
    ("reasoning_effort", {"reasoning_effort": "low", "thinking": {"type": "disabled"}}),
    ("reasoning_effort", {"reasoning_effort": "low",
                          "generationConfig": {"thinkingConfig": {"thinkingLevel": "high"}}}),
    ("thinking.shade", {"thinking": {"type": "adaptive", "shade": 1}}),
    ("tools.1.type", {"tools": [CLOCK, {"type": "custom", "custom": {"name": "x"}}]}),
    ("tools.0.cache_control", {"tools": [{**CLOCK, "cache_control": {"type": "ephemeral"}}]}),
    ("tool_choice", {"tool_choice": "required"}),
    ("tool_choice", {"tool_choice": "required", "web_search_options": {}}),
    ("tool_choice", {"tool_choice": "auto", "tools": [CLOCK],
                     "toolConfig": {"functionCallingConfig": {"mode": "NONE"}}}),
    ("tool_choice.type", {"tool_choice": {"type": "custom", "custom": {"name": "x"}}, "tools": [CLOCK]}),
    ("tool_choice.allowed_tools",
     {"tools": [CLOCK], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}}),
    ("tool_choice.function.name",
     {"tool_choice": {"type": "function", "function": {"name": "weather"}}, "tools": [CLOCK]}),
    ("web_search_options.search_context_size", {"web_search_options": {"search_context_size": "high"}}),
    ("web_search_options.user_location",
     {"web_search_options": {"user_location": {"type": "approximate", "approximate": {"city": "Ulm"}}}}),
    ("messages.0.name", {"messages": [{"role": "user", "name": "Ann", "content": "Hello"}]}),
    ("messages.0.cache_control",
     {"messages": [{"role": "user", "content": "Hello", "cache_control": {"type": "ephemeral"}}]}),
    ("messages.0.content.0.cache_control",
     {"messages": [{"role": "user", "content": [
         {"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}]}]}),
    ("messages.1.role", _then({"role": "function", "name": "f", "content": "x"})),
    ("messages.1.audio", _then({"role": "assistant", "audio": {"id": "a"}})),
    ("messages.1.function_call", _then({"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}})),
    ("messages.1.tool_calls.0.type", _then({"role": "assistant", "tool_calls": [CUSTOM_CALL]})),
    ("messages.1.tool_call_id", _then({"role": "tool", "tool_call_id": "none", "content": "x"})),
    ("messages.1.content.0.type", _then({"role": "assistant", "content": [IMAGE]})),
    (
        "messages.2.content.1.type",
        _then({"role": "assistant", "tool_calls": [CALL]},
              {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "See"}, IMAGE]}),
    ),
    ("messages.0.content.1.type", _part("video_url", url="https://a")),
    ("messages.0.content.1.image_url.detail", _part("image_url", url="https://a", detail="high")),
    ("messages.0.content.1.image_url.url", _part("image_url", url="ftp://a")),
    ("messages.0.content.1.file.file_id", _part("file", file_id="file-abc")),
    ("messages.0.content.1.file.file_id", _part("file", file_id="file-abc", file_data=PDF)),
    ("messages.0.content.1.input_audio.shade", _part("input_audio", data=PNG, format="wav", shade=1)),
]  # fmt: skip


class TestWhatCannotBeSaid:
    @pytest.mark.parametrize(("field", "fields"), CANNOT_BE_SAID)
    def test_it_is_refused_by_its_field(self, field: str, fields: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequest) as refused:
            translate("gemini", ask(**fields))

        assert refused.value.field == field
        assert str(refused.value).startswith(f"{field}: ")

    @pytest.mark.parametrize(("field", "fields"), CANNOT_BE_SAID)
    def test_it_is_left_out_and_named_where_the_upstream_drops(self, field: str, fields: dict[str, Any]) -> None:
        assert dropped(**fields).dropped == (field,)

    def test_the_result_of_a_call_that_was_dropped_is_dropped_with_it(self) -> None:
        fields = _then(
            {"role": "assistant", "content": "I look.", "tool_calls": [CUSTOM_CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "z"},
        )

        translation = dropped(**fields)

        assert translation.dropped == ("messages.1.tool_calls.0.type", "messages.2.tool_call_id")
        assert [turn["role"] for turn in translation.body["contents"]] == ["user", "model"]

    @pytest.mark.parametrize(
        ("field", "fields"),
        [
            ("model", {"model": ""}),
            ("model", {"model": "../files"}),
            ("messages.0.content", {"messages": [{"role": "user", "content": 5}]}),
            ("messages.0.content.0.image_url", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            ("messages.0.content.1.image_url.url", _part("image_url", url="data:image/png,raw")),
            ("messages.0.content.1.input_audio.format", _part("input_audio", data=PNG)),
            ("messages.0.content.1.input_audio.data", _part("input_audio", data="not base64", format="wav")),
            ("messages.1.tool_calls.0.function.name", _then({"role": "assistant", "tool_calls": [{"function": {}}]})),
            ("messages.1.tool_calls", _then({"role": "assistant", "tool_calls": "x"})),
            ("metadata", {"metadata": ["team"]}),
            ("generationConfig", {"generationConfig": "x"}),
            ("toolConfig", {"toolConfig": "x", "tools": [CLOCK], "tool_choice": "auto"}),
            ("thinking", {"thinking": 1024}),
            ("tools.0.function.name", {"tools": [{"function": {"name": 5}}]}),
            ("tool_choice.allowed_tools.mode",
             {"tools": [CLOCK], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "any"}}}),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("drop", [False, True])
    def test_nonsense_is_refused_also_where_the_upstream_drops(
        self, field: str, fields: dict[str, Any], drop: bool
    ) -> None:
        with pytest.raises(InvalidRequest) as refused:
            translate("gemini", ask(**fields), drop_unsupported=drop)

        assert refused.value.field == field
