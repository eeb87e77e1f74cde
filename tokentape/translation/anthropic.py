"""A chat.completions request as Anthropic's Messages API takes it.

| chat.completions | Messages |
|---|---|
| system, developer | `system`, wherever they stood |
| user, tool | user turns; turns of one role that follow each other are one |
| assistant with tool_calls | `tool_use` blocks; `thinking_blocks` of an earlier answer come first |
| image_url, file | `image` and `document` blocks, by URL or as base64 |
| max_completion_tokens, max_tokens | `max_tokens`, which is a must |
| temperature to 1, top_p | the same |
| stop | `stop_sequences` |
| tools, tool_choice, parallel_tool_calls | `tools`, `tool_choice` with `disable_parallel_tool_use` |
| web_search_options | the server tool `web_search` |
| response_format json_schema | `output_config.format` |
| reasoning_effort | `thinking`: adaptive with `output_config.effort`, or a budget on models before 4.6 |
| user, safety_identifier, metadata.user_id | `metadata.user_id` |
| service_tier auto, default | auto, standard_only |
| n | nothing: the caller asks so many times |

Fields that are none of chat.completions (`top_k`, `thinking`, `mcp_servers`, …) are sent as they are, also those of a
tool (`cache_control`, `defer_loading`, …). Where they contradict the others, that is refused as well.
Not checked is what depends on the model, and changes with it: whether it thinks, what it does not take beside thinking
(another temperature than 1, a forced tool), how long an answer may be. The API says so itself.
Source: the API reference of Messages, version 2023-06-01, the types of its SDK, and wire facts from gateways.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from tokentape.errors import InvalidRequest

from .anthropic_messages import messages_of
from .drops import Drops
from .functions import Choice, Function, choice_of, functions_of
from .request import Translation, format_of, limit_of, object_at, stops_of, text_at, wishes

#: LiteLLM's, in tokens. With the limit that is sent where none is set, the largest is less than any model's maximum.
_BUDGETS: Final = {"minimal": 1024, "low": 1024, "medium": 2048, "high": 4096, "xhigh": 8192, "max": 16384}
_EFFORTS: Final = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
_LEAST_BUDGET: Final = 1024
#: The version in a model's name: claude-opus-4-5-20251101, claude-3.7-sonnet, anthropic.claude-sonnet-4-20250514-v1:0.
_VERSION: Final = re.compile(r"claude-(?:[a-z]+-)?(\d{1,2})(?:[-.](\d{1,2})(?!\d))?(?!\d)")
_ADAPTIVE: Final = (4, 6)  # older models know thinking by budget alone
_XHIGH: Final = (4, 7)  # 4.6 knows max, but refuses xhigh
_SEARCHES: Final = {"low": 1, "medium": 5, "high": 10}
_TIERS: Final = {"auto": "auto", "default": "standard_only"}
_MODES: Final = {"auto": "auto", "none": "none", "required": "any"}
#: What the API knows of a tool beside what is translated.
_OF_A_TOOL: Final = ("cache_control", "allowed_callers", "defer_loading", "eager_input_streaming", "input_examples")
_UNKNOWN: Final = {
    "audio": "there is no spoken answer",
    "frequency_penalty": "there is no such penalty",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "logit_bias": "tokens cannot be weighted",
    "logprobs": "there are no log probabilities",
    "modalities": "answers are text",
    "moderation": "there is no such service",
    "prediction": "there is no predicted output",
    "presence_penalty": "there is no such penalty",
    "prompt_cache_key": "the cache is asked for by cache_control in the parts",
    "prompt_cache_options": "the cache is asked for by cache_control in the parts",
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
    limit = limit_of(asked, drops)
    wire: dict[str, Any] = {
        "model": text_at(body, "model", ""),
        "messages": messages,
        "max_tokens": default_max_tokens if limit is None else limit,
        "stream": streamed,
    }
    if system:
        wire["system"] = system
    if asked.get("output_config") is not None:
        wire["output_config"] = dict(object_at(asked, "output_config", ""))
    _add_sampling(asked, wire, drops)
    _add_tools(asked, wire, drops)
    _add_format(asked, wire, drops)
    _add_thinking(asked, wire, drops, limited=limit is not None)
    _add_account(asked, wire, drops)
    own = {name: value for name, value in asked.items() if name not in _TRANSLATED and name not in _UNKNOWN}
    for name in sorted((own.keys() & wire.keys()) - {"output_config"}):
        drops.unsupported(name, "the request says this in the words of chat.completions too")
    return Translation("/messages", {**own, **wire}, streamed, drops.fields)


def _add_sampling(asked: Mapping[str, Any], wire: dict[str, Any], drops: Drops) -> None:
    temperature = asked.get("temperature")
    if isinstance(temperature, int | float) and temperature > 1:
        drops.unsupported("temperature", f"Anthropic's API takes 0 to 1, not {temperature:g}")
    elif temperature is not None:
        wire["temperature"] = temperature
    kept = []
    for where, text in stops_of(asked):
        if text.strip():
            kept.append(text)
        else:
            drops.unsupported(where, "Anthropic's API refuses stop sequences of white space alone")
    if kept:
        wire["stop_sequences"] = kept


def _add_tools(asked: Mapping[str, Any], wire: dict[str, Any], drops: Drops) -> None:
    functions = functions_of(asked, drops, _OF_A_TOOL)
    searching = "web_search_options" in asked
    choice = choice_of(asked, functions, drops, others=searching)
    if choice is not None and choice.names is not None and not choice.single:
        functions = [function for function in functions if function.name in choice.names]
    tools = [_tool(function) for function in functions]
    if searching:
        tools.append(_web_search(object_at(asked, "web_search_options", ""), drops))
    if not tools:
        return
    wire["tools"] = tools
    if (chosen := _choice(choice, asked.get("parallel_tool_calls") is False)) is not None:
        wire["tool_choice"] = chosen


def _tool(function: Function) -> dict[str, Any]:
    described = {"description": function.description} if function.description else {}
    strict = {"strict": True} if function.strict else {}
    schema = {"type": "object", **(function.parameters or {"properties": {}})}
    return {"name": function.name, **described, "input_schema": schema, **strict, **function.own}


def _choice(choice: Choice | None, one_at_a_time: bool) -> dict[str, Any] | None:
    if choice is None and not one_at_a_time:
        return None
    chosen: dict[str, Any] = {"type": _MODES[choice.mode if choice else "auto"]}
    if choice is not None and choice.single and choice.names:
        chosen = {"type": "tool", "name": choice.names[0]}
    if one_at_a_time and chosen["type"] != "none":
        chosen["disable_parallel_tool_use"] = True
    return chosen


def _web_search(options: Mapping[str, Any], drops: Drops) -> dict[str, Any]:
    """The tool's first version, which every model knows; the later ones run in a sandbox for code."""
    where = "web_search_options"
    drops.beyond({"search_context_size", "user_location"}, options, where)
    tool: dict[str, Any] = {"type": "web_search_20250305", "name": "web_search"}
    size = options.get("search_context_size")
    if isinstance(size, str) and size in _SEARCHES:
        tool["max_uses"] = _SEARCHES[size]
    elif size is not None:
        drops.unsupported(f"{where}.search_context_size", f"must be one of {', '.join(_SEARCHES)}")
    if options.get("user_location") is not None:
        location = object_at(options, "user_location", where)
        drops.beyond({"type", "approximate"}, location, f"{where}.user_location")
        place = object_at(location, "approximate", f"{where}.user_location")
        tool["user_location"] = {**place, "type": "approximate"}
    return tool


def _add_format(asked: Mapping[str, Any], wire: dict[str, Any], drops: Drops) -> None:
    kind, schema = format_of(asked, drops)
    if kind == "json_object":
        drops.unsupported("response_format.type", "Anthropic's API has no JSON without a schema: use json_schema")
    elif kind == "json_schema":
        _configure("format", {"type": "json_schema", "schema": schema}, "response_format", wire, drops)


def _add_thinking(asked: Mapping[str, Any], wire: dict[str, Any], drops: Drops, *, limited: bool) -> None:
    effort = asked.get("reasoning_effort")
    own = asked.get("thinking")
    if own is not None:
        _add_to_own(object_at(asked, "thinking", ""), effort, wire, drops, limited=limited)
    elif effort == "none":
        wire["thinking"] = {"type": "disabled"}
    elif effort is not None and _knows(effort, drops):
        if _version(wire["model"]) < _ADAPTIVE:
            _add_budget(_BUDGETS[effort], wire, drops, limited=limited)
        else:
            wire["thinking"] = {"type": "adaptive", "display": "summarized"}
            _add_effort(effort, wire, drops)


def _add_to_own(own: Mapping[str, Any], effort: Any, wire: dict[str, Any], drops: Drops, *, limited: bool) -> None:
    """`thinking` in Anthropic's own words is sent as it is. An effort goes with one that is adaptive."""
    budget = own.get("budget_tokens")
    if isinstance(budget, int) and budget > 0 and not limited:
        wire["max_tokens"] += budget
    if effort is None:
        return
    if own.get("type") != "adaptive" or effort == "none":
        drops.unsupported("reasoning_effort", "thinking says it already")
    elif _knows(effort, drops):
        _add_effort(effort, wire, drops)


def _add_effort(effort: str, wire: dict[str, Any], drops: Drops) -> None:
    word = "max" if effort == "xhigh" and _version(wire["model"]) < _XHIGH else _EFFORTS[effort]
    _configure("effort", word, "reasoning_effort", wire, drops)


def _knows(effort: object, drops: Drops) -> bool:
    if isinstance(effort, str) and effort in _EFFORTS:
        return True
    drops.unsupported("reasoning_effort", f"must be none or one of {', '.join(_EFFORTS)}")
    return False


def _version(model: str) -> tuple[int, int]:
    """What comes after every version that is known where the name tells none: aliases mean the newest."""
    match = _VERSION.search(model.lower())
    return (int(match[1]), int(match[2] or 0)) if match else (99, 0)


def _add_budget(budget: int, wire: dict[str, Any], drops: Drops, *, limited: bool) -> None:
    """The budget is part of max_tokens, and has to be less: half of a limit that the request sets is for the answer."""
    if not limited:
        wire["max_tokens"] += budget
        wire["thinking"] = {"type": "enabled", "budget_tokens": budget}
        return
    limit = wire["max_tokens"]
    if not isinstance(limit, int) or limit <= _LEAST_BUDGET:
        drops.unsupported("reasoning_effort", f"thinking takes at least {_LEAST_BUDGET} tokens, less than max_tokens")
        return
    wire["thinking"] = {"type": "enabled", "budget_tokens": max(_LEAST_BUDGET, min(budget, limit // 2))}


def _configure(name: str, value: Any, field: str, wire: dict[str, Any], drops: Drops) -> None:
    """A setting of output_config, which may hold others in the request's own words."""
    config = wire.setdefault("output_config", {})
    if config.get(name) not in (None, value):
        drops.unsupported(field, f"output_config.{name} says otherwise")
    else:
        config[name] = value


def _add_account(asked: Mapping[str, Any], wire: dict[str, Any], drops: Drops) -> None:
    metadata = asked.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise InvalidRequest("must be an object", field="metadata")
    drops.beyond({"user_id"}, metadata, "metadata")
    names = {
        "metadata.user_id": metadata.get("user_id"),
        "safety_identifier": asked.get("safety_identifier"),
        "user": asked.get("user"),
    }
    for field, user in names.items():
        if user and "metadata" not in wire:
            wire["metadata"] = {"user_id": user}
        elif user and wire["metadata"] != {"user_id": user}:
            drops.unsupported(field, "Anthropic's API knows one name of a user, and the request has another")
    tier = asked.get("service_tier")
    if isinstance(tier, str) and tier in _TIERS:
        wire["service_tier"] = _TIERS[tier]
    elif tier is not None:
        drops.unsupported("service_tier", f"Anthropic's API knows {' and '.join(_TIERS)}, not {tier!r}")
