"""The turns of a conversation, as Gemini's generateContent takes them. See gemini."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from tokentape.errors import InvalidRequest

from .drops import Drops
from .request import (
    arguments_of,
    calls_of,
    data_url,
    file_of,
    object_at,
    objects_at,
    parts_of,
    said_by_assistant,
    text_at,
    text_in,
)

Part = dict[str, Any]

#: Ids that were made for calls that came without one. Gemini does not know them.
_MADE_ID = "call_"


def contents_of(body: Mapping[str, Any], drops: Drops) -> tuple[list[Part], list[dict[str, Any]]]:
    """The system instruction's parts, and the turns. Raises InvalidRequest, naming the message."""
    system: list[Part] = []
    turns: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for where, message in objects_at(body, "messages", ""):
        role = message.get("role")
        if message.get("name") and role != "tool":
            drops.unsupported(f"{where}.name", "Gemini's API has no names of participants")
        if role in ("system", "developer"):
            system += _parts(message.get("content"), f"{where}.content", drops)
        elif role == "user":
            _add(turns, "user", _parts(message.get("content"), f"{where}.content", drops))
        elif role == "assistant":
            # A result is sent under the name of the function that was called.
            names |= {str(call.get("id")): name for _, call, name in calls_of(message, where, drops)}
            _add(turns, "model", _assistant(message, where, drops))
        elif role == "tool":
            _add(turns, "user", [_result(message, where, names, drops)])
        else:
            drops.unsupported(f"{where}.role", f"Gemini's API has no counterpart of the role {role!r}")
    return system, turns


def _add(turns: list[dict[str, Any]], role: str, parts: list[Part]) -> None:
    if not parts:
        return
    if turns and turns[-1]["role"] == role:
        turns[-1]["parts"] += parts
    else:
        turns.append({"role": role, "parts": parts})


def _assistant(message: Mapping[str, Any], where: str, drops: Drops) -> list[Part]:
    texts = (part["text"] for _, part in said_by_assistant(message, where, drops))
    parts: list[Part] = [{"text": text} for text in texts if text]
    if signature := _signature(message):
        if not parts:
            parts.append({"text": ""})
        parts[-1]["thoughtSignature"] = signature
    for at, call, name in calls_of(message, where, drops):
        arguments = arguments_of(object_at(call, "function", at), f"{at}.function")
        part: Part = {"functionCall": {**_id(call.get("id")), "name": name, "args": arguments}}
        if signature := _signature(call):
            part["thoughtSignature"] = signature
        parts.append(part)
    return parts


def _result(message: Mapping[str, Any], where: str, names: Mapping[str, str], drops: Drops) -> Part:
    call_id = text_at(message, "tool_call_id", where)
    name = names.get(call_id)
    if name is None:
        raise InvalidRequest("no tool call before it has this id", field=f"{where}.tool_call_id")
    texts = []
    for at, part in parts_of(message.get("content"), f"{where}.content"):
        if part["type"] == "text":
            texts.append(text_in(part, at))
        else:
            drops.unsupported(at, f"a tool's result is text here, not {part['type']!r}")
    return {"functionResponse": {**_id(call_id), "name": name, "response": _response("\n".join(texts))}}


def _response(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    return value if isinstance(value, dict) else {"result": value}


def _parts(content: object, field: str, drops: Drops) -> list[Part]:
    return [part for at, one in parts_of(content, field) if (part := _part(one, at, drops)) is not None]


def _part(part: Mapping[str, Any], where: str, drops: Drops) -> Part | None:
    kind = part["type"]
    if kind == "text":
        text = text_in(part, where)
        return {"text": text} if text else None
    if kind == "image_url":
        image = part.get("image_url")
        image = {"url": image} if isinstance(image, str) else object_at(part, "image_url", where)
        if image.get("detail") not in (None, "auto"):
            drops.unsupported(f"{where}.image_url.detail", "levels of detail are not translated")
        return _media(text_at(image, "url", f"{where}.image_url"), f"{where}.image_url.url")
    if kind == "file":
        return _media(file_of(part, where)[0], f"{where}.file.file_data")
    if kind == "input_audio":
        audio = object_at(part, "input_audio", where)
        form = text_at(audio, "format", f"{where}.input_audio")
        return {"inlineData": {"mimeType": f"audio/{form}", "data": text_at(audio, "data", f"{where}.input_audio")}}
    drops.unsupported(f"{where}.type", f"Gemini's API takes text, images, files and audio, not {kind!r}")
    return None


def _media(url: str, where: str) -> Part:
    data = data_url(url, where)
    if data is not None:
        return {"inlineData": {"mimeType": data.media_type, "data": data.data}}
    if not url.lower().startswith(("https://", "http://", "gs://")):
        raise InvalidRequest("must be an https:, gs: or data: URL", field=where)
    guessed, _ = mimetypes.guess_type(urlsplit(url).path)
    return {"fileData": {"fileUri": url, **({"mimeType": guessed} if guessed else {})}}


def _signature(value: Mapping[str, Any]) -> str:
    extra = value.get("extra_content")
    google = extra.get("google") if isinstance(extra, Mapping) else None
    signature = google.get("thought_signature") if isinstance(google, Mapping) else None
    return signature if isinstance(signature, str) else ""


def _id(call_id: object) -> dict[str, str]:
    return {"id": call_id} if isinstance(call_id, str) and call_id and not call_id.startswith(_MADE_ID) else {}
