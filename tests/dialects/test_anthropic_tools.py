"""Tools, search and thinking as Anthropic's Messages API takes them, judged by the types of Anthropic's own SDK."""

from __future__ import annotations

from typing import Any

import pytest

from .test_anthropic_requests import CLOCK, NEW, OLD, WEATHER, said


class TestTools:
    def test_functions(self) -> None:
        strict = {
            "type": "function",
            "function": {**WEATHER["function"], "strict": True},
            "cache_control": {"type": "ephemeral"},
        }
        loose: dict[str, Any] = {
            "function": {"name": "any", "description": None, "parameters": {"properties": {}}, "strict": False}
        }

        tools = said(tools=[strict, CLOCK, loose])["tools"]

        assert tools == [
            {
                "name": "weather",
                "description": "The weather at a place",
                "input_schema": WEATHER["function"]["parameters"],
                "strict": True,
                "cache_control": {"type": "ephemeral"},
            },
            {"name": "clock", "input_schema": {"type": "object", "properties": {}}},
            {"name": "any", "input_schema": {"type": "object", "properties": {}}},
        ]

    @pytest.mark.parametrize(
        ("choice", "parallel", "sent"),
        [
            (None, None, None),
            (None, True, None),
            (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
            ("auto", None, {"type": "auto"}),
            ("none", None, {"type": "none"}),
            ("none", False, {"type": "none"}),
            ("required", None, {"type": "any"}),
            ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
            ({"type": "function", "function": {"name": "clock"}}, None, {"type": "tool", "name": "clock"}),
            (
                {"type": "function", "function": {"name": "clock"}},
                False,
                {"type": "tool", "name": "clock", "disable_parallel_tool_use": True},
            ),
        ],
    )
    def test_choice(self, choice: Any, parallel: bool | None, sent: Any) -> None:
        body = said(tools=[WEATHER, CLOCK], tool_choice=choice, parallel_tool_calls=parallel)

        assert body.get("tool_choice") == sent
        assert len(body["tools"]) == 2

    @pytest.mark.parametrize(("mode", "sent"), [("auto", "auto"), ("required", "any")])
    def test_functions_that_are_not_allowed_are_not_offered(self, mode: str, sent: str) -> None:
        allowed = {"mode": mode, "tools": [{"type": "function", "function": {"name": "clock"}}]}

        body = said(tools=[WEATHER, CLOCK], tool_choice={"type": "allowed_tools", "allowed_tools": allowed})

        assert [tool["name"] for tool in body["tools"]] == ["clock"]
        assert body["tool_choice"] == {"type": sent}

    def test_choice_without_tools_asks_for_nothing(self) -> None:
        assert said(tool_choice="auto", parallel_tool_calls=False) == said() == said(tool_choice="none", tools=[])

    @pytest.mark.parametrize(
        ("options", "settings"),
        [
            ({}, {}),
            ({"search_context_size": None, "user_location": None}, {}),
            ({"search_context_size": "low"}, {"max_uses": 1}),
            ({"search_context_size": "medium"}, {"max_uses": 5}),
            ({"search_context_size": "high"}, {"max_uses": 10}),
            (
                {"user_location": {"type": "approximate", "approximate": {"city": "Ulm", "country": "DE"}}},
                {"user_location": {"type": "approximate", "city": "Ulm", "country": "DE"}},
            ),
        ],
    )
    def test_web_search(self, options: dict[str, Any], settings: dict[str, Any]) -> None:
        body = said(tools=[CLOCK], web_search_options=options, tool_choice="required")

        assert body["tools"][1:] == [{"type": "web_search_20250305", "name": "web_search", **settings}]
        assert said(web_search_options=options, tool_choice="required")["tool_choice"] == {"type": "any"}


class TestThinking:
    @pytest.mark.parametrize(
        "model",
        ["claude-3-7-sonnet-20250219", "claude-3.7-sonnet", "claude-sonnet-4-20250514", "claude-opus-4@20250514",
         "claude-4-sonnet", "claude-opus-4-1", "claude-haiku-4-5-20251001", "anthropic/claude-sonnet-4.5",
         "eu.anthropic.claude-opus-4-5-20251101-v1:0", "claude-opus-4"],
    )  # fmt: skip
    @pytest.mark.parametrize(
        ("effort", "budget"),
        [("minimal", 1024), ("low", 1024), ("medium", 2048), ("high", 4096), ("xhigh", 8192), ("max", 16384)],
    )
    def test_older_models_get_a_budget_beside_what_they_may_answer(self, model: str, effort: str, budget: int) -> None:
        body = said(model=model, reasoning_effort=effort)

        assert body["thinking"] == {"type": "enabled", "budget_tokens": budget}
        assert body["max_tokens"] == 8192 + budget
        assert "output_config" not in body

    @pytest.mark.parametrize(("limit", "budget"), [(100_000, 4096), (4000, 2000), (1500, 1024), (1025, 1024)])
    def test_budget_leaves_room_under_a_limit_that_the_request_sets(self, limit: int, budget: int) -> None:
        body = said(model=OLD, reasoning_effort="high", max_tokens=limit)

        assert (body["max_tokens"], body["thinking"]["budget_tokens"]) == (limit, budget)

    @pytest.mark.parametrize(
        "model",
        ["claude-opus-4-7", "anthropic/claude-opus-4.8", "claude-4.7-opus", "claude-opus-5", "claude-sonnet-5-5",
         "claude-fable-5-1", "claude-mythos-preview", "claude-haiku-5-5-20260801", "claude-opus-4-10", "our-alias"],
    )  # fmt: skip
    @pytest.mark.parametrize(
        ("effort", "sent"),
        [
            ("minimal", "low"),
            ("low", "low"),
            ("medium", "medium"),
            ("high", "high"),
            ("xhigh", "xhigh"),
            ("max", "max"),
        ],
    )
    def test_newer_models_get_an_effort(self, model: str, effort: str, sent: str) -> None:
        body = said(model=model, reasoning_effort=effort)

        assert body["thinking"] == {"type": "adaptive", "display": "summarized"}
        assert body["output_config"] == {"effort": sent}
        assert body["max_tokens"] == 8192

    @pytest.mark.parametrize("model", ["claude-opus-4-6", "claude-sonnet-4.6", "anthropic.claude-opus-4-6-v1"])
    def test_models_that_do_not_know_xhigh_get_the_next_higher(self, model: str) -> None:
        assert said(model=model, reasoning_effort="xhigh")["output_config"] == {"effort": "max"}
        assert said(model=model, reasoning_effort="high")["output_config"] == {"effort": "high"}

    @pytest.mark.parametrize("model", [OLD, NEW])
    def test_none_switches_thinking_off(self, model: str) -> None:
        assert said(model=model, reasoning_effort="none")["thinking"] == {"type": "disabled"}

    def test_effort_and_format_share_the_output_config_with_the_requests_own(self) -> None:
        wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
        own: dict[str, Any] = {"effort": "low"}

        body = said(reasoning_effort="low", response_format=wanted, output_config=own)

        assert body["output_config"] == {
            "effort": "low",
            "format": {"type": "json_schema", "schema": {"type": "object"}},
        }
        assert own == {"effort": "low"}

    def test_thinking_in_anthropics_own_words_is_sent_as_it_is(self) -> None:
        enabled = {"type": "enabled", "budget_tokens": 20_000}
        adaptive = {"type": "adaptive"}

        assert said(thinking=enabled)["thinking"] == enabled
        assert said(thinking=enabled)["max_tokens"] == 28_192
        assert said(thinking=enabled, max_tokens=30_000)["max_tokens"] == 30_000
        assert said(thinking=adaptive, reasoning_effort="max")["output_config"] == {"effort": "max"}
