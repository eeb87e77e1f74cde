"""What is said in a conversation: the part of it that is the same in every dialect, and that names a request.

A request may reach the simulator as it was submitted, or translated to another API and read back. Both must get the
same answer. So a request is named by what no translation changes:

- the system prompt comes first, wherever it stood;
- then the turns; what one side says in several messages is one turn, and tool results are the user's;
- a turn is its texts (empty ones are none), files, calls and results in their order. A turn of one text is that text.

A call is its function and arguments, a result is its JSON, and a file is its URL, or the SHA-256 of its content;
ids, names of participants, titles, cache marks and thinking do not count. Whatever else a message holds stays as it is.

A conversation of plain texts that take turns is said by its messages as they are. Nothing here comes from
`translation/`: what checks a translation must not share its mistakes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from .job import canonical_json

#: A text, or an object of anything else.
_Part = Any


def said(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What chat.completions messages say, as messages of a simpler kind. Raises nothing for what is malformed."""
    system: list[_Part] = []
    turns: list[tuple[object, list[_Part]]] = []
    for message in messages:
        side, parts = _message(message)
        if side == "system":
            system += parts
        elif turns and turns[-1][0] == side:
            turns[-1][1].extend(parts)
        elif parts:
            turns.append((side, parts))
    return [{"role": side, "content": _content(parts)} for side, parts in [("system", system), *turns] if parts]


def _content(parts: list[_Part]) -> _Part:
    return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else parts


def _message(message: Mapping[str, Any]) -> tuple[object, list[_Part]]:
    """The side that speaks, and what it says."""
    role, content = message.get("role"), message.get("content")
    if role in ("system", "developer"):
        return "system", _filled(content)
    if role == "user":
        return "user", _filled(content)
    if role == "tool":
        return "user", _result(content)
    if role == "assistant":
        refusal = message.get("refusal")
        return "assistant", [*_filled(content), *_filled(refusal), *_calls(message)]
    return role, [{name: value for name, value in message.items() if name != "role"}]


def _filled(content: object) -> list[_Part]:
    return [part for part in _parts(content) if part != ""]


def _parts(content: object) -> Iterator[_Part]:
    if isinstance(content, list):
        for part in content:
            yield _part(part) if isinstance(part, Mapping) else part
    elif content is not None:
        yield content


def _part(part: Mapping[str, Any]) -> _Part:
    kind = part.get("type")
    if kind in ("text", "refusal") and isinstance(part.get(kind), str):
        return part[kind]
    url = _url(part)
    return part if url is None else {"file": _content_of(url)}


def _url(part: Mapping[str, Any]) -> str | None:
    """Where a file is; None for a part that is no file, or no proper one."""
    kind = part.get("type")
    file = part.get(kind) if isinstance(kind, str) else None
    url: object = None
    if kind == "image_url":
        url = file.get("url") if isinstance(file, Mapping) else file
    elif kind == "file" and isinstance(file, Mapping):
        url = next((file[name] for name in ("file_data", "file_url", "file_id") if file.get(name)), None)
    elif kind == "input_audio" and isinstance(file, Mapping):
        url = file.get("data")
    return url if isinstance(url, str) else None


def _content_of(url: str) -> str:
    """A data: URL, or bare base64, by its content: there are many ways to write it. Any other URL as it is."""
    head, comma, data = url.rpartition(",") if url[:5].lower() == "data:" else ("", "", url)
    if (comma and not head.lower().endswith(";base64")) or (not comma and ":" in url):
        return url
    data = "".join(unquote(data).split()) if comma else "".join(data.split())
    try:
        content = base64.b64decode(data + "=" * (-len(data) % 4), validate=True)
    except ValueError:
        return url
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _calls(message: Mapping[str, Any]) -> Iterator[_Part]:
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            yield {"call": function.get("name"), "arguments": _value(function.get("arguments") or "{}")}
        else:
            yield call
    if message.get("function_call"):
        yield {"function_call": message["function_call"]}


def _result(content: object) -> list[_Part]:
    """Texts are lines of one; what is no JSON object is the `result` of one, as Gemini's API wants it."""
    parts = _filled(content)
    value = _value("\n".join(part for part in parts if isinstance(part, str)))
    result = value if isinstance(value, dict) else {"result": value}
    return [{"result": result}, *(part for part in parts if not isinstance(part, str))]


def _value(text: object) -> object:
    """What a JSON text stands for; what is none, or cannot be written again, stands for itself."""
    if not isinstance(text, str):
        return text
    try:
        value = json.loads(text)
        canonical_json(value)
    except (ValueError, RecursionError):
        return text
    return value
