"""The turns of a conversation, as Gemini's generateContent takes them. See gemini.

A call's thought signature stands on the part with the call, word for word, and the message's own on its last text: a
turn of a thinking model is refused without them. A result goes by the name of its function; the id beside it is sent
where Gemini gave it, and is left out where it was made here for a call that came without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .drops import Drops
from .media import Media, file_of, image_of
from .request import arguments_of, calls_of, object_at, parts_of, read_json, said_by_assistant, text_at, text_in
from .request import turns_of as read_turns

Part = dict[str, Any]

#: How the ids begin that were made for calls that came without one. Gemini does not know them.
_MADE_ID = "call_"


def contents_of(body: Mapping[str, Any], drops: Drops) -> tuple[list[Part], list[dict[str, Any]]]:
    """The system instruction's parts, and the turns. Raises InvalidRequest, naming the message."""
    system: list[Part] = []
    turns: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for where, role, message in read_turns(body, drops):
        if role == "assistant":
            # A result is sent under the name of the function that was called.
            names |= {str(call.get("id")): name for _, call, name in calls_of(message, where, drops)}
            _add(turns, "model", _assistant(message, where, drops))
        elif role == "tool":
            _add(turns, "user", _result(message, where, names, drops))
        elif role == "user":
            _add(turns, "user", _parts(message.get("content"), f"{where}.content", drops))
        else:
            system += _parts(message.get("content"), f"{where}.content", drops)
    return system, turns


def _add(turns: list[dict[str, Any]], role: str, parts: list[Part]) -> None:
    if not parts:
        return
    if turns and turns[-1]["role"] == role:
        turns[-1]["parts"] += parts
    else:
        turns.append({"role": role, "parts": parts})


def _assistant(message: Mapping[str, Any], where: str, drops: Drops) -> list[Part]:
    said = [_text(part, at, drops) for at, part in said_by_assistant(message, where, drops)]
    parts = [part for part in said if part["text"]]
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


def _result(message: Mapping[str, Any], where: str, names: Mapping[str, str], drops: Drops) -> list[Part]:
    call_id = text_at(message, "tool_call_id", where)
    name = names.get(call_id)
    if name is None:
        drops.unsupported(f"{where}.tool_call_id", "no function call before it has this id")
        return []
    texts = []
    for at, part in parts_of(message.get("content"), f"{where}.content"):
        if part["type"] == "text":
            texts.append(_text(part, at, drops)["text"])
        else:
            drops.unsupported(f"{at}.type", f"a tool's result is text here, not {part['type']!r}")
    return [{"functionResponse": {**_id(call_id), "name": name, "response": _response("\n".join(texts))}}]


def _response(text: str) -> dict[str, Any]:
    try:
        value = read_json(text)
    except ValueError:
        value = text
    return value if isinstance(value, dict) else {"result": value}


def _parts(content: object, field: str, drops: Drops) -> list[Part]:
    return [part for at, one in parts_of(content, field) if (part := _part(one, at, drops)) is not None]


def _part(part: Mapping[str, Any], where: str, drops: Drops) -> Part | None:
    kind = part["type"]
    if kind == "text":
        text = _text(part, where, drops)
        return text if text["text"] else None
    if kind not in ("image_url", "file", "input_audio"):
        drops.unsupported(f"{where}.type", f"Gemini's API takes text, images, files and audio, not {kind!r}")
        return None
    drops.beyond({"type", kind}, part, where)
    if kind == "input_audio":
        return _audio(object_at(part, "input_audio", where), f"{where}.input_audio", drops)
    media = image_of(part, where, drops) if kind == "image_url" else file_of(part, where, drops)
    return _media(media, drops) if media is not None else None


def _text(part: Mapping[str, Any], where: str, drops: Drops) -> Part:
    drops.beyond({"type", "text"}, part, where)
    return {"text": text_in(part, where)}


def _audio(audio: Mapping[str, Any], where: str, drops: Drops) -> Part | None:
    drops.beyond({"format", "data"}, audio, where)
    url = f"data:audio/{text_at(audio, 'format', where)};base64,{text_at(audio, 'data', where)}"
    return _media(Media(url, f"{where}.data"), drops)


def _media(media: Media, drops: Drops) -> Part | None:
    data = media.data()
    if data is not None:
        return {"inlineData": {"mimeType": data.media_type, "data": data.data}}
    if not media.url.lower().startswith(("https://", "http://", "gs://")):
        drops.unsupported(media.field, "Gemini's API takes https:, gs: and data: URLs")
        return None
    media_type = media.media_type()
    return {"fileData": {"fileUri": media.url, **({"mimeType": media_type} if media_type else {})}}


def _signature(value: Mapping[str, Any]) -> str:
    extra = value.get("extra_content")
    google = extra.get("google") if isinstance(extra, Mapping) else None
    signature = google.get("thought_signature") if isinstance(google, Mapping) else None
    return signature if isinstance(signature, str) else ""


def _id(call_id: object) -> dict[str, str]:
    return {"id": call_id} if isinstance(call_id, str) and call_id and not call_id.startswith(_MADE_ID) else {}
