"""A chat.completions request as Gemini's generateContent takes it.

| chat.completions | generateContent |
|---|---|
| system, developer | `systemInstruction`, wherever they stood |
| user, tool / assistant | `contents` of the roles user and model; turns of one role that follow each other are one |
| image_url, file, input_audio | `inlineData`, or `fileData` by URL |
| tool_calls, and their results | `functionCall` with its thought signature, `functionResponse` |
| tools, web_search_options | `functionDeclarations`, `googleSearch` |
| tool_choice | `toolConfig.functionCallingConfig` |
| response_format | `responseMimeType`, `responseJsonSchema` |
| reasoning_effort, thinking.budget_tokens | `thinkingConfig`: a level, on models before 3 a budget |
| n, max tokens, stop, temperature, top_p, seed, penalties, logprobs | their counterparts in `generationConfig` |

Fields that are none of chat.completions (`safetySettings`, `cachedContent`, …) are sent as they are, and a
`generationConfig` of the request's own wins over what is translated.
Source: the API reference of generateContent, v1beta, and Google's own OpenAI-compatible layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from tokentape.errors import InvalidRequest

from .drops import Drops
from .gemini_contents import contents_of
from .request import Translation, object_at, objects_at, text_at, wishes

#: Google's own layer; none switches thinking off, where the model lets itself be.
_BUDGETS: Final = {"none": 0, "minimal": 512, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576, "max": 24576}
_LEVELS: Final = {
    "minimal": "minimal",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
_BY_BUDGET: Final = re.compile(r"gemini-(?:1|2)\b|gemini-(?:1|2)\.")
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
_UNKNOWN: Final = {
    "audio": "spoken answers are not translated",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "logit_bias": "tokens cannot be weighted",
    "metadata": "there is none",
    "modalities": "answers are text",
    "parallel_tool_calls": "calls cannot be held to one at a time",
    "prediction": "there is no predicted output",
    "prompt_cache_key": "the cache is named by cachedContent",
    "prompt_cache_retention": "the cache is named by cachedContent",
    "safety_identifier": "there is no name of a user",
    "service_tier": "there are no tiers",
    "store": "answers are not kept",
    "user": "there is no name of a user",
    "verbosity": "there is no such setting",
}
_TRANSLATED: Final = frozenset({
    "generationConfig", "max_completion_tokens", "max_tokens", "messages", "model", "reasoning_effort",
    "response_format", "stop", "stream", "stream_options", "thinking", "tool_choice", "tools", "web_search_options",
    *_RENAMED,
})  # fmt: skip


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
    system, contents = contents_of(body, drops)
    wire: dict[str, Any] = {
        name: value for name, value in asked.items() if name not in _TRANSLATED and name not in _UNKNOWN
    }
    wire["contents"] = contents
    if system:
        wire["systemInstruction"] = {"parts": system}
    _add_tools(asked, wire, drops)
    config = _config(asked, str(body.get("model", "")), drops)
    own = asked.get("generationConfig")
    config |= own if isinstance(own, Mapping) else {}
    if config:
        wire["generationConfig"] = config
    return Translation(_path(body, streamed), wire, streamed, drops.fields)


def _path(body: Mapping[str, Any], streamed: bool) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model or ".." in model:
        raise InvalidRequest("must be the name of a model", field="model")
    place = quote(model.removeprefix("/"), safe="/@.-_")
    place = place if "/" in place else f"models/{place}"
    return f"/{place}:{'streamGenerateContent' if streamed else 'generateContent'}"


def _config(asked: Mapping[str, Any], model: str, drops: Drops) -> dict[str, Any]:
    config = {wire: asked[name] for name, wire in _RENAMED.items() if name in asked}
    limit = asked.get("max_completion_tokens", asked.get("max_tokens"))
    if limit is not None:
        config["maxOutputTokens"] = limit
    stop = asked.get("stop")
    if stop is not None:
        config["stopSequences"] = [stop] if isinstance(stop, str) else stop
    config |= _format(asked, drops)
    config |= _thinking(asked, model, drops)
    return config


def _format(asked: Mapping[str, Any], drops: Drops) -> dict[str, Any]:
    wanted = asked.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if wanted is None or kind == "text":
        return {}
    if kind == "json_object":
        return {"responseMimeType": "application/json"}
    if kind == "json_schema":
        schema = object_at(object_at(asked, "response_format", ""), "json_schema", "response_format")
        inner = object_at(schema, "schema", "response_format.json_schema")
        return {"responseMimeType": "application/json", "responseJsonSchema": inner}
    drops.unsupported("response_format", "Gemini's API knows text, json_object and json_schema")
    return {}


def _thinking(asked: Mapping[str, Any], model: str, drops: Drops) -> dict[str, Any]:
    effort, thinking = asked.get("reasoning_effort"), asked.get("thinking")
    if isinstance(thinking, Mapping):  # a budget, in the words of Anthropic's API
        if thinking.get("type") == "disabled":
            return {"thinkingConfig": {"thinkingBudget": 0}}
        budget = thinking.get("budget_tokens")
        return {"thinkingConfig": {"includeThoughts": True, **({"thinkingBudget": budget} if budget else {})}}
    if thinking is not None:
        drops.unsupported("thinking", "must be an object")
    if effort is None:
        return {}
    by_budget = _BY_BUDGET.search(model) is not None
    known: Mapping[str, Any] = _BUDGETS if by_budget else _LEVELS
    if effort not in known:
        drops.unsupported("reasoning_effort", f"must be one of {', '.join(known)} for this model, not {effort!r}")
        return {}
    setting = {"thinkingBudget" if by_budget else "thinkingLevel": known[effort]}
    return {"thinkingConfig": {**setting, **({"includeThoughts": True} if effort != "none" else {})}}


def _add_tools(asked: Mapping[str, Any], wire: dict[str, Any], drops: Drops) -> None:
    functions = [tool for where, one in objects_at(asked, "tools", "") if (tool := _tool(one, where, drops))]
    tools: list[dict[str, Any]] = [{"functionDeclarations": functions}] if functions else []
    if "web_search_options" in asked:
        options = object_at(asked, "web_search_options", "")
        for name, value in options.items():
            if value is not None and (name, value) != ("search_context_size", "medium"):
                drops.unsupported(f"web_search_options.{name}", "Gemini's search has no settings")
        tools.append({"googleSearch": {}})
    if tools:
        wire["tools"] = tools
    choice = _choice(asked.get("tool_choice"), drops)
    if choice and functions:
        wire["toolConfig"] = {"functionCallingConfig": choice}


def _tool(tool: Mapping[str, Any], where: str, drops: Drops) -> dict[str, Any] | None:
    if tool.get("type", "function") != "function":
        drops.unsupported(f"{where}.type", f"Gemini's API has no counterpart of {tool.get('type')!r} tools")
        return None
    function = object_at(tool, "function", where)
    translated: dict[str, Any] = {"name": text_at(function, "name", f"{where}.function")}
    if function.get("description"):
        translated["description"] = function["description"]
    if function.get("parameters"):
        translated["parametersJsonSchema"] = function["parameters"]
    return translated


def _choice(choice: object, drops: Drops) -> dict[str, Any] | None:
    if choice is None:
        return None
    if isinstance(choice, str):
        mode = {"auto": "AUTO", "required": "ANY", "none": "NONE"}.get(choice)
        if mode is not None:
            return {"mode": mode}
    elif isinstance(choice, Mapping) and choice.get("type") == "function":
        function = object_at(choice, "function", "tool_choice")
        return {"mode": "ANY", "allowedFunctionNames": [text_at(function, "name", "tool_choice.function")]}
    elif isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        allowed = object_at(choice, "allowed_tools", "tool_choice")
        names = [
            text_at(object_at(tool, "function", where), "name", f"{where}.function")
            for where, tool in objects_at(allowed, "tools", "tool_choice.allowed_tools")
        ]
        # Names can be given with ANY alone; VALIDATED is AUTO that keeps to them.
        return {"mode": "ANY" if allowed.get("mode") == "required" else "VALIDATED", "allowedFunctionNames": names}
    drops.unsupported("tool_choice", "must be auto, required, none, a function or allowed_tools")
    return None
