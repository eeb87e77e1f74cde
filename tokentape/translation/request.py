"""What comes out of a translation, and what the translations share in reading a chat.completions request."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, NoReturn

from tokentape.errors import InvalidRequest

from .drops import Drops

#: Values that ask for what every API does anyway, written out.
_ASKS_FOR_NOTHING: Final[dict[str, tuple[object, ...]]] = {
    "n": (1,),
    "store": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True,),
    "prompt_cache_options": ({}, {"mode": "implicit"}),
    "service_tier": ("auto",),
    "verbosity": ("medium",),
    "metadata": ({},),
    "stop": ([],),
    "tools": ([],),
    "functions": ([],),
    "function_call": ("none", "auto"),
}
#: What an answer holds beside its words and calls, and a client may send back with it. It asks for nothing: it repeats
#: what stands elsewhere, or it is a signature, which says something to the API alone that wrote it (and is read there).
_OF_AN_ANSWER: Final = frozenset({
    "annotations", "extra_content", "parsed", "reasoning", "reasoning_content", "reasoning_details", "thinking_blocks",
})  # fmt: skip
_OF_A_TURN: Final = frozenset({"role", "content", "name"})
_KNOWN: Final[dict[str, frozenset[str]]] = {
    "system": _OF_A_TURN,
    "developer": _OF_A_TURN,
    "user": _OF_A_TURN,
    "tool": _OF_A_TURN | {"tool_call_id"},
    "assistant": _OF_A_TURN | _OF_AN_ANSWER | {"refusal", "tool_calls", "audio", "function_call"},
}


class Translation(NamedTuple):
    """A request in a dialect: `path` comes after the API's root, `dropped` names the fields that were left out."""

    path: str
    body: dict[str, Any]
    streamed: bool
    dropped: tuple[str, ...] = ()


def wishes(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that ask for something: no nulls, and no defaults that were only written out."""
    return {
        name: value
        for name, value in body.items()
        if value is not None and not any(value == nothing for nothing in _ASKS_FOR_NOTHING.get(name, ()))
    }


def limit_of(asked: Mapping[str, Any], drops: Drops) -> Any:
    """How many tokens an answer may have; None where the request does not say. `max_tokens` is the older name."""
    limit, older = asked.get("max_completion_tokens"), asked.get("max_tokens")
    if limit is not None and older is not None and limit != older:
        drops.unsupported("max_tokens", "max_completion_tokens says otherwise")
    return older if limit is None else limit


def stops_of(asked: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The stop sequences, each with its path."""
    stop = asked.get("stop")
    if stop is None:
        return []
    stops = [("stop", stop)] if isinstance(stop, str) else None
    if isinstance(stop, list):
        stops = [(f"stop.{index}", text) for index, text in enumerate(stop)]
    if stops is None or not all(isinstance(text, str) for _, text in stops):
        raise InvalidRequest("must be a text or a list of texts", field="stop")
    return stops


def format_of(asked: Mapping[str, Any], drops: Drops) -> tuple[str, dict[str, Any]]:
    """What form the answer is to have: text, json_object or json_schema, and the schema.

    `name` and `strict` ask for nothing: no other API names its schema, or keeps to one by halves.
    """
    wanted = asked.get("response_format")
    if wanted is None:
        return "text", {}
    if not isinstance(wanted, Mapping):
        raise InvalidRequest("must be an object", field="response_format")
    kind = wanted.get("type")
    if kind == "json_schema":
        drops.beyond({"type", "json_schema"}, wanted, "response_format")
        return kind, _schema(object_at(wanted, "json_schema", "response_format"), drops)
    if kind in ("text", "json_object"):
        drops.beyond({"type"}, wanted, "response_format")
        return kind, {}
    drops.unsupported("response_format.type", "must be text, json_object or json_schema")
    return "text", {}


def _schema(wanted: Mapping[str, Any], drops: Drops) -> dict[str, Any]:
    """The description belongs to the schema, which is what the model reads."""
    where = "response_format.json_schema"
    drops.beyond({"name", "strict", "schema", "description"}, wanted, where)
    schema = dict(object_at(wanted, "schema", where))
    description = wanted.get("description")
    if description and schema.setdefault("description", description) != description:
        drops.unsupported(f"{where}.description", "the schema has another one")
    return schema


def turns_of(body: Mapping[str, Any], drops: Drops, *also: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The messages, each with its path and its role, and nothing but what is known. `also`: fields known besides."""
    for where, message in objects_at(body, "messages", ""):
        role = message.get("role")
        known = _KNOWN.get(role) if isinstance(role, str) else None
        if known is None or not isinstance(role, str):
            drops.unsupported(f"{where}.role", f"the upstream's API has no counterpart of the role {role!r}")
            continue
        if message.get("name") and role != "tool":
            drops.unsupported(f"{where}.name", "the upstream's API has no names of participants")
        drops.beyond({*known, *also}, message, where)
        yield where, role, message


def parts_of(content: object, field: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The parts of a message's content, each with its path; a text is one part."""
    if isinstance(content, str):
        yield field, {"type": "text", "text": content}
        return
    if content is not None and not isinstance(content, list):
        raise InvalidRequest("must be a text, a list of parts, or null", field=field)
    for index, part in enumerate(content or ()):
        where = f"{field}.{index}"
        if isinstance(part, str):
            yield where, {"type": "text", "text": part}
        elif isinstance(part, Mapping) and isinstance(part.get("type"), str):
            yield where, part
        else:
            raise InvalidRequest("a part of a content is an object with a type", field=where)


def text_in(part: Mapping[str, Any], field: str) -> str:
    """The text of a text part."""
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequest("must be a text", field=f"{field}.text")
    return text


def said_by_assistant(message: Mapping[str, Any], field: str, drops: Drops) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The texts of an assistant's turn as text parts, each with its path; a refusal is a text too."""
    for name, why in (("audio", "spoken answers cannot be sent back"), ("function_call", "use tool_calls")):
        if message.get(name):
            drops.unsupported(f"{field}.{name}", why)
    for where, part in parts_of(message.get("content"), f"{field}.content"):
        if part["type"] == "text":
            text_in(part, where)
            yield where, part
        elif part["type"] == "refusal":
            drops.beyond({"type", "refusal"}, part, where)
            yield where, {"type": "text", "text": _refusal(part.get("refusal"), f"{where}.refusal")}
        else:
            drops.unsupported(f"{where}.type", f"an assistant's turn cannot hold {part['type']!r}")
    if message.get("refusal") is not None:
        yield f"{field}.refusal", {"type": "text", "text": _refusal(message["refusal"], f"{field}.refusal")}


def _refusal(said: object, field: str) -> str:
    if not isinstance(said, str):
        raise InvalidRequest("must be a text", field=field)
    return said


def calls_of(message: Mapping[str, Any], field: str, drops: Drops) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """The function calls of an assistant's turn, each with its path and the function's name."""
    for where, call in objects_at(message, "tool_calls", field):
        if call.get("type", "function") != "function":
            drops.unsupported(f"{where}.type", f"there is no counterpart of {call.get('type')!r} calls")
            continue
        function = object_at(call, "function", where)
        drops.beyond({"id", "type", "function", "index", "extra_content"}, call, where)
        drops.beyond({"name", "arguments", "parsed_arguments"}, function, f"{where}.function")
        yield where, call, text_at(function, "name", f"{where}.function")


def text_at(value: Mapping[str, Any], name: str, field: str) -> str:
    """A text that has to be there. Raises InvalidRequest, which names it."""
    text = value.get(name)
    if not isinstance(text, str) or not text:
        raise InvalidRequest("must be a text that is not empty", field=_path(field, name))
    return text


def object_at(value: Mapping[str, Any], name: str, field: str) -> Mapping[str, Any]:
    """An object that has to be there. Raises InvalidRequest, which names it."""
    inner = value.get(name)
    if not isinstance(inner, Mapping):
        raise InvalidRequest("must be an object", field=_path(field, name))
    return inner


def objects_at(value: Mapping[str, Any], name: str, field: str) -> list[tuple[str, Mapping[str, Any]]]:
    """A list of objects, each with its path; empty where there is none. Raises InvalidRequest for another thing."""
    inner = value.get(name)
    if inner is None:
        return []
    where = _path(field, name)
    if not isinstance(inner, list) or not all(isinstance(entry, Mapping) for entry in inner):
        raise InvalidRequest("must be a list of objects", field=where)
    return [(f"{where}.{index}", entry) for index, entry in enumerate(inner)]


def arguments_of(function: Mapping[str, Any], field: str) -> dict[str, Any]:
    """The arguments of a call that was made, as an object; an empty text is none."""
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, str):
        try:
            arguments = read_json(arguments)
        except ValueError:
            raise InvalidRequest("must be JSON", field=f"{field}.arguments") from None
    if not isinstance(arguments, dict):
        raise InvalidRequest("must be a JSON object", field=f"{field}.arguments")
    return arguments


def read_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError; also for NaN and Infinity, which could not be written again."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is too large a number")
    return value


def _path(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name
