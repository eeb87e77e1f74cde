"""A chat.completions request as Gemini's generateContent takes it.

| chat.completions | generateContent |
|---|---|
| system, developer | `systemInstruction`, wherever they stood |
| user, tool / assistant | `contents` of the roles user and model; turns of one role that follow each other are one |
| image_url, file, input_audio | `inlineData`, or `fileData` by URL |
| tool_calls, and their results | `functionCall` with its thought signature, `functionResponse` |
| tools, web_search_options | `functionDeclarations`, `googleSearch` |
| tool_choice | `toolConfig.functionCallingConfig`; VALIDATED where a tool is strict, or not all are allowed |
| response_format | `responseMimeType`, `responseJsonSchema` |
| reasoning_effort, thinking.budget_tokens | `thinkingConfig`: a level, on models before 3 a budget |
| n, max tokens, stop, temperature, top_p, seed, penalties, logprobs | their counterparts in `generationConfig` |
| metadata | `labels`, as far as they can be labels |
| service_tier default, flex, priority, fast | `serviceTier` standard, flex, priority |
| store | the same |

Fields that are none of chat.completions (`safetySettings`, `cachedContent`, …) are sent as they are, and a
`generationConfig` of the request's own goes beside what is translated. Where they contradict it, that is refused.
Not checked is what depends on the model, and changes with it: how many candidates it gives, which levels it knows,
whether it searches beside functions. The API says so itself.
Source: the API reference of generateContent, v1beta, the types of its SDK, and Google's own OpenAI-compatible layer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final
from urllib.parse import quote

from tokentape.errors import InvalidRequest

from .drops import Drops
from .functions import Choice, Function, choice_of, functions_of
from .gemini_contents import contents_of
from .request import Translation, format_of, limit_of, object_at, stops_of, text_at, wishes

#: Google's own layer; none switches thinking off, where the model lets itself be.
_BUDGETS: Final = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576, "max": 24576}
#: The levels that models of version 3 know. Thinking cannot be switched off there.
_LEVELS: Final = {
    "minimal": "minimal",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
_BY_BUDGET: Final = re.compile(r"gemini-(?:[a-z]+-)*[12](?:\.|\b)")
#: The large models begin at low.
_PRO: Final = re.compile(r"gemini-[\d.]+-pro\b")
#: Fields of generationConfig that only have another name.
_RENAMED: Final = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "logprobs": "responseLogprobs",
    "top_logprobs": "logprobs",
    "n": "candidateCount",
}
_TIERS: Final = {
    "auto": "standard", "default": "standard", "flex": "flex", "priority": "priority", "fast": "priority",
}  # fmt: skip
#: What Google Cloud takes as a label: its key, and its value.
_LABEL: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}"), re.compile(r"[a-z0-9_-]{0,63}")
_UNKNOWN: Final = {
    "audio": "spoken answers are not translated",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "logit_bias": "tokens cannot be weighted",
    "modalities": "answers are text",
    "moderation": "there are safetySettings",
    "parallel_tool_calls": "calls cannot be held to one at a time",
    "prediction": "there is no predicted output",
    "prompt_cache_key": "the cache is named by cachedContent",
    "prompt_cache_options": "the cache is named by cachedContent",
    "prompt_cache_retention": "the cache is named by cachedContent",
    "safety_identifier": "there is no name of a user",
    "user": "there is no name of a user",
    "verbosity": "there is no such setting",
}
_TRANSLATED: Final = frozenset({
    "generationConfig", "max_completion_tokens", "max_tokens", "messages", "metadata", "model", "reasoning_effort",
    "response_format", "service_tier", "stop", "stream", "stream_options", "thinking", "tool_choice", "tools",
    "web_search_options", *_RENAMED,
})  # fmt: skip

#: A value of generationConfig, and the field of the request that it comes from.
_Setting = tuple[Any, str]


def gemini_native(body: Mapping[str, Any]) -> Translation:
    """A body that is one of generateContent already. `model` and `stream`, which it has not, make the path."""
    streamed = body.get("stream") is not False
    wire = {name: value for name, value in body.items() if name not in ("model", "stream")}
    return Translation(_path(body, streamed), wire, streamed)


def gemini_request(body: Mapping[str, Any], drops: Drops) -> Translation:
    """The generateContent body. Raises InvalidRequest."""
    asked = wishes(body)
    for name in sorted(_UNKNOWN.keys() & asked.keys()):
        drops.unsupported(name, f"Gemini's API has no counterpart: {_UNKNOWN[name]}")
    streamed = body.get("stream") is not False
    path = _path(body, streamed)
    system, contents = contents_of(body, drops)
    wire: dict[str, Any] = {"contents": contents}
    if system:
        wire["systemInstruction"] = {"parts": system}
    _add_tools(asked, wire, drops)
    if config := _generation_config(asked, str(body["model"]), drops):
        wire["generationConfig"] = config
    _add_account(asked, wire, drops)
    own = {name: value for name, value in asked.items() if name not in _TRANSLATED and name not in _UNKNOWN}
    for name in sorted((own.keys() & wire.keys()) - {"toolConfig"}):
        drops.unsupported(name, "the request says this in the words of chat.completions too")
    return Translation(path, {**own, **wire}, streamed, drops.fields)


def _path(body: Mapping[str, Any], streamed: bool) -> str:
    model = text_at(body, "model", "")
    if ".." in model:
        raise InvalidRequest("must be the name of a model", field="model")
    place = quote(model.removeprefix("/"), safe="/@.-_")
    place = place if "/" in place else f"models/{place}"
    return f"/{place}:{'streamGenerateContent' if streamed else 'generateContent'}"


def _generation_config(asked: Mapping[str, Any], model: str, drops: Drops) -> dict[str, Any]:
    settings: dict[str, _Setting] = {wire: (asked[name], name) for name, wire in _RENAMED.items() if name in asked}
    limit = limit_of(asked, drops)
    if limit is not None:
        field = "max_tokens" if asked.get("max_completion_tokens") is None else "max_completion_tokens"
        settings["maxOutputTokens"] = (limit, field)
    if stops := [text for _, text in stops_of(asked)]:
        settings["stopSequences"] = (stops, "stop")
    kind, schema = format_of(asked, drops)
    if kind != "text":
        settings["responseMimeType"] = ("application/json", "response_format")
    if kind == "json_schema":
        settings["responseJsonSchema"] = (schema, "response_format")
    settings |= _thinking(asked, model, drops)
    own = {} if asked.get("generationConfig") is None else object_at(asked, "generationConfig", "")
    for name, (value, field) in settings.items():
        if name in own and own[name] != value:
            drops.unsupported(field, f"generationConfig.{name} says otherwise")
    return {**{name: value for name, (value, _) in settings.items()}, **own}


def _thinking(asked: Mapping[str, Any], model: str, drops: Drops) -> dict[str, _Setting]:
    effort = asked.get("reasoning_effort")
    if asked.get("thinking") is not None:
        if effort is not None:
            drops.unsupported("reasoning_effort", "thinking says it already")
        return {"thinkingConfig": (_budget(object_at(asked, "thinking", ""), drops), "thinking")}
    if effort is None:
        return {}
    by_budget = _BY_BUDGET.search(model) is not None
    known: Mapping[str, Any] = _BUDGETS if by_budget else _LEVELS
    if not isinstance(effort, str) or effort not in known:
        drops.unsupported("reasoning_effort", f"must be one of {', '.join(known)} for this model, not {effort!r}")
        return {}
    word = "low" if effort == "minimal" and _PRO.search(model) and not by_budget else known[effort]
    setting = {"thinkingBudget" if by_budget else "thinkingLevel": word}
    return {"thinkingConfig": ({**setting, **({"includeThoughts": True} if effort != "none" else {})},
                               "reasoning_effort")}  # fmt: skip


def _budget(thinking: Mapping[str, Any], drops: Drops) -> dict[str, Any]:
    """A budget in the words of Anthropic's API, which routers take for all models."""
    drops.beyond({"type", "budget_tokens", "display"}, thinking, "thinking")
    if thinking.get("type") == "disabled":
        return {"thinkingBudget": 0}
    budget = thinking.get("budget_tokens")
    return {
        "includeThoughts": thinking.get("display") != "omitted",
        **({"thinkingBudget": budget} if budget is not None else {}),
    }


def _add_tools(asked: Mapping[str, Any], wire: dict[str, Any], drops: Drops) -> None:
    functions = functions_of(asked, drops)
    tools: list[dict[str, Any]] = [{"functionDeclarations": [_tool(one) for one in functions]}] if functions else []
    if "web_search_options" in asked:
        options = object_at(asked, "web_search_options", "")
        # Gemini's search has no settings; medium is what everybody has.
        known = {"search_context_size"} if options.get("search_context_size") == "medium" else set()
        drops.beyond(known, options, "web_search_options")
        tools.append({"googleSearch": {}})
    if tools:
        wire["tools"] = tools
    config = _calling(choice_of(asked, functions, drops), functions)
    if config and functions:
        own = {} if asked.get("toolConfig") is None else object_at(asked, "toolConfig", "")
        if own.get("functionCallingConfig") not in (None, config):
            drops.unsupported("tool_choice", "toolConfig.functionCallingConfig says otherwise")
        wire["toolConfig"] = {"functionCallingConfig": config, **own}


def _tool(function: Function) -> dict[str, Any]:
    described = {"description": function.description} if function.description else {}
    schema = {"parametersJsonSchema": function.parameters} if function.parameters else {}
    return {"name": function.name, **described, **schema}


def _calling(choice: Choice | None, functions: Collection[Function]) -> dict[str, Any]:
    """ANY keeps to the schema anyhow. VALIDATED is AUTO that does, and the only one beside ANY that takes names."""
    if choice is None or choice.mode == "auto":
        if choice is not None and choice.names is not None:
            return {"mode": "VALIDATED", "allowedFunctionNames": list(choice.names)}
        if any(function.strict for function in functions):
            return {"mode": "VALIDATED"}
        return {} if choice is None else {"mode": "AUTO"}
    if choice.mode == "none":
        return {"mode": "NONE"}
    return {"mode": "ANY", **({} if choice.names is None else {"allowedFunctionNames": list(choice.names)})}


def _add_account(asked: Mapping[str, Any], wire: dict[str, Any], drops: Drops) -> None:
    metadata = asked.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise InvalidRequest("must be an object", field="metadata")
    key, text = _LABEL
    labels = {}
    for name, value in metadata.items():
        if isinstance(value, str) and key.fullmatch(name) and text.fullmatch(value):
            labels[name] = value
        elif value is not None:
            drops.unsupported(f"metadata.{name}", "a label is of lower case letters, digits, _ and -, at most 63")
    if labels:
        wire["labels"] = labels
    tier = asked.get("service_tier")
    if isinstance(tier, str) and tier in _TIERS:
        wire["serviceTier"] = _TIERS[tier]
    elif tier is not None:
        drops.unsupported("service_tier", f"must be one of {', '.join(_TIERS)}, not {tier!r}")
