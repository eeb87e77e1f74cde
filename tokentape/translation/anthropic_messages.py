"""The turns of a conversation, as Anthropic's Messages API takes them. See anthropic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

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

Block = dict[str, Any]

_IMAGES: Final = ("image/jpeg", "image/png", "image/gif", "image/webp")


def messages_of(body: Mapping[str, Any], drops: Drops) -> tuple[list[Block], list[dict[str, Any]]]:
    """The system prompt's blocks, and the turns. Raises InvalidRequest, naming the message."""
    system: list[Block] = []
    turns: list[dict[str, Any]] = []
    for where, message in objects_at(body, "messages", ""):
        role = message.get("role")
        if message.get("name") and role != "tool":
            drops.unsupported(f"{where}.name", "Anthropic's API has no names of participants")
        if role in ("system", "developer"):
            system += [_text(part, at) for at, part in _texts(message.get("content"), f"{where}.content", drops)]
        elif role == "user":
            _add(turns, "user", _blocks(message.get("content"), f"{where}.content", drops))
        elif role == "assistant":
            _add(turns, "assistant", _assistant(message, where, drops))
        elif role == "tool":
            _add(turns, "user", [_result(message, where, drops)])
        else:
            drops.unsupported(f"{where}.role", f"Anthropic's API has no counterpart of the role {role!r}")
    return [block for block in system if block["text"]], turns


def _add(turns: list[dict[str, Any]], role: str, blocks: list[Block]) -> None:
    """To the last turn where it is of the same role: the API wants them to take turns."""
    blocks = [block for block in blocks if block.get("type") != "text" or block["text"]]  # it refuses empty texts
    if not blocks:
        return
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"] += blocks
    else:
        turns.append({"role": role, "content": blocks})


def _assistant(message: Mapping[str, Any], where: str, drops: Drops) -> list[Block]:
    blocks = [
        {name: value for name, value in block.items() if name != "index"}
        for _, block in objects_at(message, "thinking_blocks", where)
        if block.get("signature") or block.get("data")  # without one the API refuses it
    ]
    blocks += [_text(part, at) for at, part in said_by_assistant(message, where, drops)]
    for at, call, name in calls_of(message, where, drops):
        arguments = arguments_of(object_at(call, "function", at), f"{at}.function")
        blocks.append({"type": "tool_use", "id": text_at(call, "id", at), "name": name, "input": arguments})
    return blocks


def _result(message: Mapping[str, Any], where: str, drops: Drops) -> Block:
    result: Block = {"type": "tool_result", "tool_use_id": text_at(message, "tool_call_id", where)}
    content = message.get("content")
    if isinstance(content, str):
        if content:
            result["content"] = content
    else:
        result["content"] = _blocks(content, f"{where}.content", drops)
    if message.get("cache_control"):
        result["cache_control"] = message["cache_control"]
    return result


def _texts(content: object, field: str, drops: Drops) -> list[tuple[str, Mapping[str, Any]]]:
    texts = []
    for at, part in parts_of(content, field):
        if part["type"] == "text":
            texts.append((at, part))
        else:
            drops.unsupported(at, f"a system prompt is text, not {part['type']!r}")
    return texts


def _blocks(content: object, field: str, drops: Drops) -> list[Block]:
    return [block for at, part in parts_of(content, field) if (block := _block(part, at, drops)) is not None]


def _block(part: Mapping[str, Any], where: str, drops: Drops) -> Block | None:
    kind = part["type"]
    if kind == "text":
        return _text(part, where)
    if kind == "image_url":
        block = _image(part, where, drops)
    elif kind == "file":
        block = _document(part, where, drops)
    else:
        drops.unsupported(f"{where}.type", f"Anthropic's API takes text, images and files, not {kind!r}")
        return None
    return _cached(part, block) if block is not None else None


def _text(part: Mapping[str, Any], where: str) -> Block:
    return _cached(part, {"type": "text", "text": text_in(part, where)})


def _cached(part: Mapping[str, Any], block: Block) -> Block:
    return {**block, "cache_control": part["cache_control"]} if part.get("cache_control") else block


def _image(part: Mapping[str, Any], where: str, drops: Drops) -> Block | None:
    image = part.get("image_url")
    image = {"url": image} if isinstance(image, str) else object_at(part, "image_url", where)
    if image.get("detail") not in (None, "auto"):
        drops.unsupported(f"{where}.image_url.detail", "Anthropic's API has no levels of detail")
    url = text_at(image, "url", f"{where}.image_url")
    data = data_url(url, f"{where}.image_url.url")
    if data is None:
        return {"type": "image", "source": _by_url(url, f"{where}.image_url.url")}
    if data.media_type not in _IMAGES:
        drops.unsupported(f"{where}.image_url.url", f"must be one of {', '.join(_IMAGES)}, not {data.media_type}")
        return None
    return {"type": "image", "source": {"type": "base64", "media_type": data.media_type, "data": data.data}}


def _document(part: Mapping[str, Any], where: str, drops: Drops) -> Block | None:
    url, file = file_of(part, where)
    data = data_url(url, f"{where}.file.file_data")
    if data is None:
        source = _by_url(url, f"{where}.file.file_url")
    elif data.media_type in _IMAGES:
        return {"type": "image", "source": {"type": "base64", "media_type": data.media_type, "data": data.data}}
    elif data.media_type == "application/pdf":
        source = {"type": "base64", "media_type": data.media_type, "data": data.data}
    elif data.media_type == "text/plain":
        source = {"type": "text", "media_type": "text/plain", "data": data.text()}
    else:
        drops.unsupported(f"{where}.file", f"Anthropic's API takes PDF, plain text and images, not {data.media_type}")
        return None
    block: Block = {"type": "document", "source": source}
    if isinstance(file.get("filename"), str):
        block["title"] = file["filename"]
    return block


def _by_url(url: str, where: str) -> dict[str, Any]:
    if not url.lower().startswith(("https://", "http://")):
        raise InvalidRequest("must be an https: or a data: URL", field=where)
    return {"type": "url", "url": url}
