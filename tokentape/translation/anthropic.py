"""A chat.completions request as Anthropic's Messages API takes it.

| chat.completions | Messages |
|---|---|
| system, developer | `system`, wherever they stood |
| user, tool | user turns; turns of one role that follow each other are one |
| assistant with tool_calls | `tool_use` blocks; `thinking_blocks` of an earlier answer come first |
| image_url, file | `image` and `document` blocks, by URL or as base64 |
| max_completion_tokens, max_tokens | `max_tokens`, which is a must |
| stop | `stop_sequences` |
| tools, tool_choice, parallel_tool_calls | `tools`, `tool_choice` with `disable_parallel_tool_use` |
| web_search_options | the server tool `web_search` |
| response_format json_schema | `output_config.format` |
| reasoning_effort | `thinking`: adaptive with `output_config.effort`, or a budget on models before 4.6 |
| user, safety_identifier, metadata.user_id | `metadata.user_id` |
| service_tier auto, default | auto, standard_only |

Fields that are none of chat.completions (`top_k`, `thinking`, `mcp_servers`, …) are sent as they are.
Source: the API reference of Messages, version 2023-06-01, and wire facts collected from its SDKs and gateways.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from tokentape.errors import InvalidRequest

from .anthropic_messages import messages_of
from .drops import Drops
from .request import Translation, object_at, objects_at, text_at, wishes

#: What the budgets of LiteLLM and of Anthropic's own examples amount to, in tokens.
_BUDGETS: Final = {"minimal": 1024, "low": 2048, "medium": 4096, "high": 8192, "xhigh": 16384, "max": 32768}
_EFFORTS: Final = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "max", "max": "max"}
_LEAST_BUDGET: Final = 1024
#: Models that know thinking by budget alone. The list is closed: newer ones decide by themselves how long to think.
_BY_BUDGET: Final = re.compile(r"claude-(?:3|(?:opus|sonnet|haiku)-4(?:-[0-5])?(?:-20\d{6})?(?!-?\d))")
_SEARCHES: Final = {"low": 1, "medium": 5, "high": 10}
_TIERS: Final = {"auto": "auto", "default": "standard_only"}
_UNKNOWN: Final = {
    "audio": "there is no spoken answer",
    "frequency_penalty": "there is no such penalty",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "logit_bias": "tokens cannot be weighted",
    "logprobs": "there are no log probabilities",
    "modalities": "answers are text",
    "prediction": "there is no predicted output",
    "presence_penalty": "there is no such penalty",
    "prompt_cache_key": "the cache is asked for by cache_control in the parts",
    "prompt_cache_retention": "the cache is asked for by cache_control in the parts",
    "seed": "answers cannot be repeated",
    "store": "answers are not kept",
    "top_logprobs": "there are no log probabilities",
    "verbosity": "there is no such setting",
}
_TRANSLATED: Final = frozenset({
    "max_completion_tokens", "max_tokens", "messages", "metadata", "model", "n", "parallel_tool_calls",
    "reasoning_effort", "response_format", "safety_identifier", "service_tier", "stop", "stream", "stream_options",
    "temperature", "tool_choice", "tools", "user", "web_search_options",
})  # fmt: skip


def anthropic_native(body: Mapping[str, Any]) -> Translation:
    """A body that is one of the Messages API already: sent as it is, as a stream unless it says otherwise."""
    streamed = body.get("stream") is not False
    return Translation("/messages", {**body, "stream": streamed}, streamed)


def anthropic_request(body: Mapping[str, Any], drops: Drops, *, default_max_tokens: int) -> Translation:
    """The Messages body for one answer: `n` is the caller's, who asks so many times. Raises InvalidRequest."""
    asked = wishes(body)
    for name in sorted(_UNKNOWN.keys() & asked.keys()):
        drops.unsupported(name, f"Anthropic's API has no counterpart: {_UNKNOWN[name]}")
    streamed = body.get("stream") is not False
    system, messages = messages_of(body, drops)
    passed = {name: value for name, value in asked.items() if name not in _TRANSLATED and name not in _UNKNOWN}
    wire: dict[str, Any] = {
        **passed,
        "model": body["model"],
        "messages": messages,
        "max_tokens": asked.get("max_completion_tokens", asked.get("max_tokens", default_max_tokens)),
        "stream": streamed,
    }
    if system:
        wire["system"] = system
    _add_sampling(asked, wire, drops)
    _add_tools(asked, wire, drops)
    _add_format(asked, wire, drops)
    _add_thinking(asked, wire, drops)
    _add_account(asked, wire, drops)
    return Translation("/messages", wire, streamed, drops.fields)


def _add_sampling(asked: Mapping[str, Any], wire: dict[str, Any], drops: Drops) -> None:
    temperature = asked.get("temperature")
    if isinstance(temperature, int | float) and temperature > 1:
        drops.unsupported("temperature", f"Anthropic's API takes 0 to 1, not {temperature:g}")
    elif temperature is not None:
        wire["temperature"] = temperature
    stop = asked.get("stop")
    if stop is None:
        return
    kept = []
    for index, text in enumerate([stop] if isinstance(stop, str) else stop if isinstance(stop, list) else ()):
        if isinstance(text, str) and text.strip():
            kept.append(text)
        else:
            drops.unsupported(f"stop.{index}", "Anthropic's API refuses stop sequences of white space alone")
    if kept:
        wire["stop_sequences"] = kept


def _add_tools(asked: Mapping[str, Any], wire: dict[str, Any], drops: Drops) -> None:
    tools = [tool for where, one in objects_at(asked, "tools", "") if (tool := _tool(one, where, drops)) is not None]
    choice, allowed = _choice(asked.get("tool_choice"), drops)
    if allowed is not None:
        tools = [tool for tool in tools if tool["name"] in allowed]
    if "web_search_options" in asked:
        tools.append(_web_search(asked, drops))
    if not tools:
        return
    wire["tools"] = tools
    if asked.get("parallel_tool_calls") is False and (choice or {}).get("type") != "none":
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    if choice:
        wire["tool_choice"] = choice


def _tool(tool: Mapping[str, Any], where: str, drops: Drops) -> dict[str, Any] | None:
    if tool.get("type", "function") != "function":
        drops.unsupported(f"{where}.type", f"Anthropic's API has no counterpart of {tool.get('type')!r} tools")
        return None
    function = object_at(tool, "function", where)
    translated: dict[str, Any] = {"name": text_at(function, "name", f"{where}.function")}
    if function.get("description"):
        translated["description"] = function["description"]
    translated["input_schema"] = function.get("parameters") or {"type": "object", "properties": {}}
    if function.get("strict"):
        translated["strict"] = True
    if tool.get("cache_control"):
        translated["cache_control"] = tool["cache_control"]
    return translated


def _choice(choice: object, drops: Drops) -> tuple[dict[str, Any] | None, set[str] | None]:
    """The tool_choice, and the names of the tools that are allowed, where not all are."""
    if choice is None:
        return None, None
    if isinstance(choice, str):
        known = {"auto": "auto", "required": "any", "none": "none"}.get(choice)
        if known is not None:
            return {"type": known}, None
    elif isinstance(choice, Mapping) and choice.get("type") == "function":
        function = object_at(choice, "function", "tool_choice")
        return {"type": "tool", "name": text_at(function, "name", "tool_choice.function")}, None
    elif isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        allowed = object_at(choice, "allowed_tools", "tool_choice")
        mode = "any" if allowed.get("mode") == "required" else "auto"
        functions = [
            text_at(object_at(tool, "function", where), "name", f"{where}.function")
            for where, tool in objects_at(allowed, "tools", "tool_choice.allowed_tools")
        ]
        return {"type": mode}, set(functions)
    drops.unsupported("tool_choice", "must be auto, required, none, a function or allowed_tools")
    return None, None


def _web_search(asked: Mapping[str, Any], drops: Drops) -> dict[str, Any]:
    options = object_at(asked, "web_search_options", "")
    tool: dict[str, Any] = {"type": "web_search_20250305", "name": "web_search"}
    size = options.get("search_context_size")
    if size is not None and size not in _SEARCHES:
        drops.unsupported("web_search_options.search_context_size", f"must be one of {', '.join(_SEARCHES)}")
    elif size is not None:
        tool["max_uses"] = _SEARCHES[size]
    location = options.get("user_location")
    if location is not None:
        place = object_at(object_at(options, "user_location", "web_search_options"), "approximate",
                          "web_search_options.user_location")  # fmt: skip
        tool["user_location"] = {"type": "approximate", **place}
    return tool


def _add_format(asked: Mapping[str, Any], wire: dict[str, Any], drops: Drops) -> None:
    wanted = asked.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if wanted is None or kind == "text":
        return
    if kind != "json_schema":
        why = "Anthropic's API has no JSON without a schema: use json_schema"
        drops.unsupported("response_format.type" if kind else "response_format", why)
        return
    schema = object_at(object_at(asked, "response_format", ""), "json_schema", "response_format")
    output = {"type": "json_schema", "schema": object_at(schema, "schema", "response_format.json_schema")}
    wire["output_config"] = {**_config(wire), "format": output}


def _add_thinking(asked: Mapping[str, Any], wire: dict[str, Any], drops: Drops) -> None:
    effort = asked.get("reasoning_effort")
    if effort is None or "thinking" in wire:  # said in Anthropic's own words
        return
    if effort == "none":
        wire["thinking"] = {"type": "disabled"}
    elif effort not in _EFFORTS:
        drops.unsupported("reasoning_effort", f"must be none or one of {', '.join(_EFFORTS)}")
    elif _BY_BUDGET.search(str(wire["model"])):
        _add_budget(_BUDGETS[effort], asked, wire, drops)
    else:
        wire["thinking"] = {"type": "adaptive", "display": "summarized"}
        wire["output_config"] = {**_config(wire), "effort": _EFFORTS[effort]}


def _add_budget(budget: int, asked: Mapping[str, Any], wire: dict[str, Any], drops: Drops) -> None:
    """The budget is part of max_tokens, and has to be less."""
    if not {"max_tokens", "max_completion_tokens"} & asked.keys():
        wire["max_tokens"] += budget
    limit = wire["max_tokens"]
    if not isinstance(limit, int) or limit <= _LEAST_BUDGET:
        drops.unsupported("reasoning_effort", f"thinking takes at least {_LEAST_BUDGET} tokens, less than max_tokens")
        return
    wire["thinking"] = {"type": "enabled", "budget_tokens": max(_LEAST_BUDGET, min(budget, limit // 2))}


def _add_account(asked: Mapping[str, Any], wire: dict[str, Any], drops: Drops) -> None:
    metadata = asked.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise InvalidRequest("must be an object", field="metadata")
    for name in metadata:
        if name != "user_id":
            drops.unsupported(f"metadata.{name}", "Anthropic's API knows user_id alone")
    user = metadata.get("user_id") or asked.get("safety_identifier") or asked.get("user")
    if user:
        wire["metadata"] = {"user_id": user}
    tier = asked.get("service_tier")
    if tier is not None and tier not in _TIERS:
        drops.unsupported("service_tier", f"Anthropic's API knows {' and '.join(_TIERS)}, not {tier!r}")
    elif tier is not None:
        wire["service_tier"] = _TIERS[tier]


def _config(wire: Mapping[str, Any]) -> Mapping[str, Any]:
    config = wire.get("output_config")
    return config if isinstance(config, Mapping) else {}
