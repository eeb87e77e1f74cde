"""chat.completions requests as Gemini's generateContent takes them, judged by the types of Google's own SDK."""

from __future__ import annotations

import base64
import copy
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from google.genai import types

from tokentape.translation import translate

PDF = base64.b64encode(b"%PDF-1.4 ...").decode()
PNG = base64.b64encode(b"\x89PNG...").decode()
OLD, NEW, PRO = "gemini-2.5-flash", "gemini-3.5-flash", "gemini-3.1-pro-preview"
#: What stands beside generationConfig, as the SDK puts it there for the Gemini API.
TOP = {"contents", "systemInstruction", "tools", "toolConfig", "generationConfig", "safetySettings", "cachedContent",
       "labels", "serviceTier", "store"}  # fmt: skip
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather at a place",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}


def check_accepted(body: dict[str, Any]) -> None:
    """The SDK's own types, which refuse what they do not name, take every part of the body."""
    json.dumps(body, allow_nan=False)
    assert body.keys() <= TOP
    for content in body["contents"]:
        assert types.Content.model_validate(content).parts
    assert all(turn["role"] != following["role"] for turn, following in pairwise(body["contents"]))
    for tool in body.get("tools", ()):
        types.Tool.model_validate(tool)
    if "toolConfig" in body:
        types.ToolConfig.model_validate(body["toolConfig"])
    if "systemInstruction" in body:
        types.Content.model_validate(body["systemInstruction"])
    types.GenerationConfig.model_validate(body.get("generationConfig", {}))
    beside = {name: body[name] for name in ("labels", "serviceTier", "store", "safetySettings") if name in body}
    types.GenerateContentConfig.model_validate({**body.get("generationConfig", {}), **beside})


def ask(**fields: Any) -> dict[str, Any]:
    """A request with these fields."""
    return {"model": NEW, "messages": [{"role": "user", "content": "Hello"}], **fields}


def said(**fields: Any) -> dict[str, Any]:
    """The body of a translation, which is one that the SDK's types accept."""
    body = ask(**fields)
    before = copy.deepcopy(body)
    translation = translate("gemini", body)
    assert translation.dropped == ()
    assert body == before
    check_accepted(translation.body)
    return translation.body


def config(**fields: Any) -> Any:
    """The generationConfig of a translation."""
    return said(**fields).get("generationConfig")


def parts_for(*content: Any) -> Any:
    """The parts that a user's content becomes."""
    return said(messages=[{"role": "user", "content": list(content)}])["contents"][0]["parts"]


class TestTurns:
    def test_smallest_request(self) -> None:
        assert translate("gemini", ask()) == (
            "/models/gemini-3.5-flash:streamGenerateContent",
            {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]},
            True,
            (),
        )

    @pytest.mark.parametrize(
        ("model", "place"),
        [
            ("gemini-2.5-pro", "/models/gemini-2.5-pro"),
            ("models/gemini-2.5-pro", "/models/gemini-2.5-pro"),
            ("/models/gemini-2.5-pro", "/models/gemini-2.5-pro"),
            ("tunedModels/mine", "/tunedModels/mine"),
            ("publishers/google/models/gemini-2.5-pro@001", "/publishers/google/models/gemini-2.5-pro@001"),
            ("a?b#c:d e", "/models/a%3Fb%23c%3Ad%20e"),
        ],
    )
    @pytest.mark.parametrize(("stream", "verb"), [(True, "streamGenerateContent"), (False, "generateContent")])
    def test_model_and_stream_make_the_path(self, model: str, place: str, stream: bool, verb: str) -> None:
        translation = translate("gemini", ask(model=model, stream=stream, stream_options={"include_usage": True}))

        assert translation.path == f"{place}:{verb}"
        assert translation.streamed is stream
        assert translation.body.keys() == {"contents"}

    def test_system_and_developer_turns_are_the_system_instruction_wherever_they_stood(self) -> None:
        body = said(
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hello"},
                {"role": "developer", "content": [{"type": "text", "text": "In French."}]},
                {"role": "user", "content": ["And", "so on", ""]},
            ]
        )

        assert body["systemInstruction"] == {"parts": [{"text": "Be brief."}, {"text": "In French."}]}
        assert body["contents"] == [{"role": "user", "parts": [{"text": "Hello"}, {"text": "And"}, {"text": "so on"}]}]

    @pytest.mark.parametrize(
        ("content", "response"),
        [
            ("rain", {"result": "rain"}),
            ('{"sky": "rain"}', {"sky": "rain"}),
            ("[1, 2.5]", {"result": [1, 2.5]}),
            ("7", {"result": 7}),
            ("", {"result": ""}),
            ("NaN", {"result": "NaN"}),
            ("1e999", {"result": "1e999"}),
            ("[" * 100_000, {"result": "[" * 100_000}),
            ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], {"result": "a\nb"}),
        ],
        ids=str,
    )
    def test_result_goes_by_the_name_of_its_function_and_is_an_object(self, content: Any, response: Any) -> None:
        call = {"id": "toolu_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}

        body = said(
            messages=[
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "toolu_1", "name": "weather", "content": content},
            ]
        )

        assert body["contents"][1]["parts"] == [
            {"functionCall": {"id": "toolu_1", "name": "weather", "args": {"city": "Ulm"}}}
        ]
        assert body["contents"][2]["parts"] == [
            {"functionResponse": {"id": "toolu_1", "name": "weather", "response": response}}
        ]

    def test_refusal_is_sent_back_as_what_the_model_said(self) -> None:
        body = said(
            messages=[
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": [{"type": "text", "text": "Hm"}], "refusal": "No."},
                {"role": "user", "content": "Please"},
            ]
        )

        assert body["contents"][1] == {"role": "model", "parts": [{"text": "Hm"}, {"text": "No."}]}


class TestMedia:
    @pytest.mark.parametrize(
        ("part", "sent"),
        [
            (
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "auto"}},
                {"inlineData": {"mimeType": "image/png", "data": PNG}},
            ),
            (
                {"type": "image_url", "image_url": "https://example.com/a.webp"},
                {"fileData": {"fileUri": "https://example.com/a.webp", "mimeType": "image/webp"}},
            ),
            (
                {"type": "image_url", "image_url": {"url": "https://example.com/a"}},
                {"fileData": {"fileUri": "https://example.com/a"}},
            ),
            (
                {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PDF}"}},
                {"inlineData": {"mimeType": "application/pdf", "data": PDF}},
            ),
            (
                {"type": "file", "file": {"file_data": PNG, "filename": "a.heic"}},
                {"inlineData": {"mimeType": "image/heic", "data": PNG}},
            ),
            *(
                (
                    {"type": "file", "file": {field: "https://example.com/a.pdf"}},
                    {"fileData": {"fileUri": "https://example.com/a.pdf", "mimeType": "application/pdf"}},
                )
                for field in ("file_data", "file_url", "file_id")
            ),
            (
                {"type": "file", "file": {"file_id": "gs://bucket/a", "filename": "a.mp4"}},
                {"fileData": {"fileUri": "gs://bucket/a", "mimeType": "video/mp4"}},
            ),
            (
                {"type": "file", "file": {"file_url": "https://[broken/a.pdf"}},
                {"fileData": {"fileUri": "https://[broken/a.pdf", "mimeType": "application/pdf"}},
            ),
            (
                {"type": "input_audio", "input_audio": {"data": PNG, "format": "mp3"}},
                {"inlineData": {"mimeType": "audio/mp3", "data": PNG}},
            ),
        ],
    )
    def test_file_image_or_audio_becomes_a_part(self, part: dict[str, Any], sent: dict[str, Any]) -> None:
        assert parts_for(part) == [sent]

    def test_example_with_a_pdf_is_translated(self) -> None:
        example = json.loads((Path(__file__).parents[2] / "examples" / "pdf.json").read_text())

        body = said(**example)

        document, question = body["contents"][0]["parts"]
        assert document["inlineData"]["mimeType"] == "application/pdf"
        assert base64.b64decode(document["inlineData"]["data"]).startswith(b"%PDF-")
        assert question.keys() == {"text"}
        assert body["generationConfig"] == {"maxOutputTokens": 500}


class TestSettings:
    @pytest.mark.parametrize(
        ("fields", "settings"),
        [
            ({"temperature": 1.5}, {"temperature": 1.5}),
            ({"temperature": 0}, {"temperature": 0}),
            ({"top_p": 0.5, "top_k": 3}, {"topP": 0.5, "topK": 3}),
            ({"seed": 0}, {"seed": 0}),
            ({"presence_penalty": 1, "frequency_penalty": -1}, {"presencePenalty": 1, "frequencyPenalty": -1}),
            ({"logprobs": True, "top_logprobs": 3}, {"responseLogprobs": True, "logprobs": 3}),
            ({"n": 3}, {"candidateCount": 3}),
            ({"max_tokens": 5}, {"maxOutputTokens": 5}),
            ({"max_completion_tokens": 6, "max_tokens": 6}, {"maxOutputTokens": 6}),
            ({"stop": "END"}, {"stopSequences": ["END"]}),
            ({"stop": ["a", " "]}, {"stopSequences": ["a", " "]}),
            ({"response_format": {"type": "text"}}, None),
            ({"response_format": {"type": "json_object"}}, {"responseMimeType": "application/json"}),
            (
                {"response_format": {"type": "json_schema", "json_schema": {
                    "name": "a", "strict": True, "description": "What", "schema": {"type": "object"}}}},
                {"responseMimeType": "application/json",
                 "responseJsonSchema": {"type": "object", "description": "What"}},
            ),
            ({"generationConfig": {"mediaResolution": "MEDIA_RESOLUTION_LOW"}, "temperature": 1},
             {"mediaResolution": "MEDIA_RESOLUTION_LOW", "temperature": 1}),
            ({"generationConfig": {"seed": 4}, "seed": 4}, {"seed": 4}),
        ],
    )  # fmt: skip
    def test_settings_have_their_counterparts(self, fields: dict[str, Any], settings: Any) -> None:
        assert config(**fields) == settings

    def test_what_is_the_apis_own_is_sent_as_it_is(self) -> None:
        safety = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]

        body = said(safetySettings=safety, cachedContent="cachedContents/1", labels=None)

        assert body["safetySettings"] == safety
        assert body["cachedContent"] == "cachedContents/1"
        assert "labels" not in body

    def test_metadata_are_labels(self) -> None:
        assert said(metadata={"team": "a-1", "empty": "", "none": None})["labels"] == {"team": "a-1", "empty": ""}

    @pytest.mark.parametrize(
        ("tier", "sent"),
        [("auto", None), ("default", "standard"), ("flex", "flex"), ("priority", "priority"), ("fast", "priority")],
    )
    def test_service_tier(self, tier: str, sent: str | None) -> None:
        assert said(service_tier=tier).get("serviceTier") == sent

    def test_answers_are_kept_where_the_request_says_so(self) -> None:
        assert said(store=True)["store"] is True
        assert "store" not in said(store=False)


class TestTools:
    def test_functions(self) -> None:
        assert said(tools=[WEATHER, CLOCK])["tools"] == [
            {
                "functionDeclarations": [
                    {
                        "name": "weather",
                        "description": "The weather at a place",
                        "parametersJsonSchema": WEATHER["function"]["parameters"],
                    },
                    {"name": "clock"},
                ]
            }
        ]

    @pytest.mark.parametrize(
        ("choice", "sent"),
        [
            (None, None),
            ("auto", {"mode": "AUTO"}),
            ("none", {"mode": "NONE"}),
            ("required", {"mode": "ANY"}),
            ({"type": "function", "function": {"name": "clock"}}, {"mode": "ANY", "allowedFunctionNames": ["clock"]}),
            (
                {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [CLOCK]}},
                {"mode": "ANY", "allowedFunctionNames": ["clock"]},
            ),
            (
                {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [CLOCK]}},
                {"mode": "VALIDATED", "allowedFunctionNames": ["clock"]},
            ),
        ],
    )
    def test_choice(self, choice: Any, sent: Any) -> None:
        body = said(tools=[WEATHER, CLOCK], tool_choice=choice, parallel_tool_calls=True)

        assert body.get("toolConfig") == (sent and {"functionCallingConfig": sent})
        assert len(body["tools"][0]["functionDeclarations"]) == 2

    @pytest.mark.parametrize(
        ("choice", "mode"), [(None, "VALIDATED"), ("auto", "VALIDATED"), ("required", "ANY"), ("none", "NONE")]
    )
    def test_strict_function_is_called_in_a_mode_that_keeps_to_its_schema(self, choice: Any, mode: str) -> None:
        strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}

        assert said(tools=[CLOCK, strict], tool_choice=choice)["toolConfig"] == {
            "functionCallingConfig": {"mode": mode}
        }

    def test_choice_stands_beside_the_tool_config_of_the_request(self) -> None:
        own = {"retrievalConfig": {"languageCode": "de"}}

        assert said(toolConfig=own)["toolConfig"] == own
        assert said(toolConfig=own, tools=[CLOCK], tool_choice="none")["toolConfig"] == {
            **own, "functionCallingConfig": {"mode": "NONE"},
        }  # fmt: skip

    def test_choice_without_tools_asks_for_nothing(self) -> None:
        assert said(tool_choice="auto") == said() == said(tool_choice="none", tools=[])

    @pytest.mark.parametrize("options", [{}, {"search_context_size": "medium", "user_location": None}])
    def test_web_search(self, options: dict[str, Any]) -> None:
        assert said(web_search_options=options)["tools"] == [{"googleSearch": {}}]
        assert said(web_search_options=options, tools=[CLOCK])["tools"] == [
            {"functionDeclarations": [{"name": "clock"}]},
            {"googleSearch": {}},
        ]


class TestThinking:
    @pytest.mark.parametrize(
        "model", [OLD, "gemini-2.0-flash-thinking", "publishers/google/models/gemini-2.5-pro", "gemini-robotics-er-1.5"]
    )
    @pytest.mark.parametrize(
        ("effort", "budget"),
        [("minimal", 1024), ("low", 1024), ("medium", 8192), ("high", 24576), ("xhigh", 24576), ("max", 24576)],
    )
    def test_models_before_3_get_a_budget(self, model: str, effort: str, budget: int) -> None:
        assert config(model=model, reasoning_effort=effort) == {
            "thinkingConfig": {"thinkingBudget": budget, "includeThoughts": True}
        }

    @pytest.mark.parametrize("model", [NEW, PRO, "gemini-flash-latest", "models/gemini-4-pro", "gemini-10-flash"])
    @pytest.mark.parametrize(
        ("effort", "level"),
        [("low", "low"), ("medium", "medium"), ("high", "high"), ("xhigh", "high"), ("max", "high")],
    )
    def test_models_from_3_on_get_a_level(self, model: str, effort: str, level: str) -> None:
        assert config(model=model, reasoning_effort=effort) == {
            "thinkingConfig": {"thinkingLevel": level, "includeThoughts": True}
        }

    @pytest.mark.parametrize(("model", "level"), [(NEW, "minimal"), ("gemini-3.1-flash-lite", "minimal"), (PRO, "low")])
    def test_large_models_think_a_little_at_least(self, model: str, level: str) -> None:
        assert config(model=model, reasoning_effort="minimal")["thinkingConfig"]["thinkingLevel"] == level

    def test_none_switches_thinking_off_where_that_can_be_said(self) -> None:
        assert config(model=OLD, reasoning_effort="none") == {"thinkingConfig": {"thinkingBudget": 0}}

    @pytest.mark.parametrize(
        ("thinking", "sent"),
        [
            ({"type": "disabled"}, {"thinkingBudget": 0}),
            ({"type": "adaptive"}, {"includeThoughts": True}),
            ({"type": "enabled", "budget_tokens": 2000}, {"includeThoughts": True, "thinkingBudget": 2000}),
            ({"type": "enabled", "budget_tokens": 0}, {"includeThoughts": True, "thinkingBudget": 0}),
            ({"type": "adaptive", "display": "omitted"}, {"includeThoughts": False}),
        ],
    )
    def test_budget_in_the_words_of_other_vendors(self, thinking: dict[str, Any], sent: dict[str, Any]) -> None:
        assert config(thinking=thinking) == {"thinkingConfig": sent}
