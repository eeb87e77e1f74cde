"""What comes out of a translation, and what the translations share in reading a chat.completions request."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from tokentape.errors import InvalidRequest

from .drops import Drops

#: Fields of chat.completions that steer storage, billing or caching at OpenAI, and the values that ask for nothing.
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
    "service_tier": ("auto",),
    "verbosity": ("medium",),
    "metadata": ({},),
    "stop": ([],),
    "tools": ([],),
    "functions": ([],),
}
_DATA_URL: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w-]+=[^;,]*)*)(;base64)?,", re.ASCII)


class Translation(NamedTuple):
    """A request in a dialect: `path` comes after the API's root, `dropped` names the fields that were left out."""

    path: str
    body: dict[str, Any]
    streamed: bool
    dropped: tuple[str, ...] = ()


class DataUrl(NamedTuple):
    """A file inside the request: base64 `data` without line breaks, and its media type."""

    media_type: str
    data: str

    def text(self) -> str:
        """The content of a plain text file."""
        return base64.b64decode(self.data).decode("utf-8", "replace")


def wishes(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that ask for something: no nulls, and no defaults that were only written out."""
    return {
        name: value
        for name, value in body.items()
        if value is not None and not any(value == nothing for nothing in _ASKS_FOR_NOTHING.get(name, ()))
    }


def parts_of(content: object, field: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The parts of a message's content, each with its path; a text is one part."""
    if isinstance(content, str):
        yield field, {"type": "text", "text": content}
        return
    for index, part in enumerate(content if isinstance(content, list) else ()):
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
            yield where, {"type": "text", "text": str(part.get("refusal") or "")}
        else:
            drops.unsupported(where, f"an assistant's turn cannot hold {part['type']!r}")
    if isinstance(message.get("refusal"), str):
        yield f"{field}.refusal", {"type": "text", "text": message["refusal"]}


def calls_of(message: Mapping[str, Any], field: str, drops: Drops) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """The function calls of an assistant's turn, each with its path and the function's name."""
    for where, call in objects_at(message, "tool_calls", field):
        if call.get("type", "function") != "function":
            drops.unsupported(f"{where}.type", f"there is no counterpart of {call.get('type')!r} calls")
            continue
        yield where, call, text_at(object_at(call, "function", where), "name", f"{where}.function")


def text_at(value: Mapping[str, Any], name: str, field: str) -> str:
    """A text that has to be there. Raises InvalidRequest, which names it."""
    text = value.get(name)
    if not isinstance(text, str) or not text:
        raise InvalidRequest("must be a text that is not empty", field=f"{field}.{name}")
    return text


def object_at(value: Mapping[str, Any], name: str, field: str) -> Mapping[str, Any]:
    """An object that has to be there. Raises InvalidRequest, which names it."""
    inner = value.get(name)
    if not isinstance(inner, Mapping):
        raise InvalidRequest("must be an object", field=f"{field}.{name}")
    return inner


def objects_at(value: Mapping[str, Any], name: str, field: str) -> list[tuple[str, Mapping[str, Any]]]:
    """A list of objects, each with its path; empty where there is none. Raises InvalidRequest for another thing."""
    inner = value.get(name)
    if inner is None:
        return []
    where = f"{field}.{name}" if field else name
    if not isinstance(inner, list) or not all(isinstance(entry, Mapping) for entry in inner):
        raise InvalidRequest("must be a list of objects", field=where)
    return [(f"{where}.{index}", entry) for index, entry in enumerate(inner)]


def arguments_of(function: Mapping[str, Any], field: str) -> dict[str, Any]:
    """The arguments of a call that was made, as an object; an empty text is none."""
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise InvalidRequest("must be JSON", field=f"{field}.arguments") from None
    if not isinstance(arguments, dict):
        raise InvalidRequest("must be a JSON object", field=f"{field}.arguments")
    return arguments


def data_url(url: str, field: str) -> DataUrl | None:
    """A data: URL's media type and base64; None for any other URL. Raises InvalidRequest for one that is broken."""
    if url[:5].lower() != "data:":
        return None
    match = _DATA_URL.match(url)
    if match is None or not match[3] or not match[1]:
        raise InvalidRequest("a data: URL needs a media type and ;base64", field=field)
    data = "".join(url[match.end() :].split())
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("the data is not base64", field=field) from None
    return DataUrl(match[1].lower(), data)


def file_of(part: Mapping[str, Any], field: str) -> tuple[str, Mapping[str, Any]]:
    """Where a file part's content is: a URL (data: or https:), and the part's own fields.

    chat.completions itself knows `file_data` (a data: URL) and `file_id`. A URL under `file_data` or `file_url` is what
    the routers in front of several vendors take, and what both other APIs can fetch.
    """
    file = object_at(part, "file", field)
    url = file.get("file_data") or file.get("file_url")
    if isinstance(url, str) and url:
        return url, file
    if isinstance(file.get("file_id"), str):
        raise InvalidRequest("a file of another vendor's store cannot be sent; use file_data or file_url",
                             field=f"{field}.file.file_id")  # fmt: skip
    raise InvalidRequest("needs file_data (a data: URL) or file_url", field=f"{field}.file")
