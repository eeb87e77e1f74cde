"""The turns of a conversation, as Anthropic's Messages API takes them. See anthropic.

Rules of the API: turns of one role that follow each other are one; an assistant's turn begins with its thinking, as it
was signed; the results of calls come first in the user's turn after them, under ids of letters, digits, _ and -; no
text is empty. A part's `cache_control` is kept; one of a whole message stands on its last part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from .drops import Drops
from .media import Media, file_of, image_of, text_of
from .request import arguments_of, calls_of, object_at, objects_at, parts_of, said_by_assistant, text_at, text_in
from .request import turns_of as read_turns

Block = dict[str, Any]

_IMAGES: Final = ("image/jpeg", "image/png", "image/gif", "image/webp")
_PDF: Final = "application/pdf"
_NOT_IN_IDS: Final = re.compile(r"[^a-zA-Z0-9_-]")


def messages_of(body: Mapping[str, Any], drops: Drops) -> tuple[list[Block], list[dict[str, Any]]]:
    """The system prompt's blocks, and the turns. Raises InvalidRequest, naming the message."""
    system: list[Block] = []
    turns: list[dict[str, Any]] = []
    called: set[str] = set()
    for where, role, message in read_turns(body, drops, "cache_control"):
        if role == "assistant":
            blocks = _assistant(message, where, drops)
            called |= {block["id"] for block in blocks if block["type"] == "tool_use"}
        elif role == "tool":
            blocks = _result(message, where, called, drops)
        elif role == "user":
            blocks = _blocks(message.get("content"), f"{where}.content", drops)
        else:
            blocks = [_text(part, at, drops) for at, part in _texts(message.get("content"), f"{where}.content", drops)]
        blocks = _said(blocks)
        if blocks and message.get("cache_control"):
            blocks[-1] = {**blocks[-1], "cache_control": message["cache_control"]}
        if role in ("system", "developer"):
            system += blocks
        elif blocks:
            _add(turns, "assistant" if role == "assistant" else "user", blocks)
    return system, turns


def _said(blocks: list[Block]) -> list[Block]:
    """The API refuses empty texts, which say nothing."""
    return [block for block in blocks if block["type"] != "text" or block["text"]]


def _add(turns: list[dict[str, Any]], role: str, blocks: list[Block]) -> None:
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"] += blocks
    else:
        turns.append({"role": role, "content": blocks})


def _assistant(message: Mapping[str, Any], where: str, drops: Drops) -> list[Block]:
    blocks: list[Block] = [
        {name: value for name, value in block.items() if name != "index"}
        for at, block in objects_at(message, "thinking_blocks", where)
        if text_at(block, "type", at) and (block.get("signature") or block.get("data"))  # else the API refuses it
    ]
    blocks += [_text(part, at, drops) for at, part in said_by_assistant(message, where, drops)]
    for at, call, name in calls_of(message, where, drops):
        arguments = arguments_of(object_at(call, "function", at), f"{at}.function")
        blocks.append({"type": "tool_use", "id": _id(text_at(call, "id", at)), "name": name, "input": arguments})
    return blocks


def _result(message: Mapping[str, Any], where: str, called: set[str], drops: Drops) -> list[Block]:
    call_id = _id(text_at(message, "tool_call_id", where))
    if call_id not in called:
        drops.unsupported(f"{where}.tool_call_id", "no function call before it has this id")
        return []
    result: Block = {"type": "tool_result", "tool_use_id": call_id}
    content = message.get("content")
    if not isinstance(content, str):
        content = _said(_blocks(content, f"{where}.content", drops))
    if content:
        result["content"] = content
    return [result]


def _id(call_id: str) -> str:
    """An id from another vendor may hold what this API refuses. Call and result change alike."""
    return _NOT_IN_IDS.sub("_", call_id)


def _texts(content: object, field: str, drops: Drops) -> list[tuple[str, Mapping[str, Any]]]:
    texts = []
    for at, part in parts_of(content, field):
        if part["type"] == "text":
            texts.append((at, part))
        else:
            drops.unsupported(f"{at}.type", f"a system prompt is text, not {part['type']!r}")
    return texts


def _blocks(content: object, field: str, drops: Drops) -> list[Block]:
    return [block for at, part in parts_of(content, field) if (block := _block(part, at, drops)) is not None]


def _block(part: Mapping[str, Any], where: str, drops: Drops) -> Block | None:
    kind = part["type"]
    if kind == "text":
        return _text(part, where, drops)
    if kind not in ("image_url", "file"):
        drops.unsupported(f"{where}.type", f"Anthropic's API takes text, images and files, not {kind!r}")
        return None
    drops.beyond({"type", kind, "cache_control"}, part, where)
    media = image_of(part, where, drops) if kind == "image_url" else file_of(part, where, drops)
    block = _media(media, "image" if kind == "image_url" else "document", drops) if media is not None else None
    return _cached(part, block) if block is not None else None


def _text(part: Mapping[str, Any], where: str, drops: Drops) -> Block:
    drops.beyond({"type", "text", "cache_control"}, part, where)
    return _cached(part, {"type": "text", "text": text_in(part, where)})


def _cached(part: Mapping[str, Any], block: Block) -> Block:
    return {**block, "cache_control": part["cache_control"]} if part.get("cache_control") else block


def _media(media: Media, otherwise: str, drops: Drops) -> Block | None:
    """An image or a document, whatever part it came in; `otherwise`: which of them where nothing tells."""
    data = media.data()
    media_type = media.media_type() if data is None else data.media_type
    source: Block | None = None
    if data is None and not media.url.lower().startswith(("https://", "http://")):
        drops.unsupported(media.field, "Anthropic's API takes https: and data: URLs")
        return None
    if media_type in _IMAGES or (data is None and otherwise == "image" and media_type != _PDF):
        source = {"type": "url", "url": media.url}
        if data is not None:
            source = {"type": "base64", "media_type": media_type, "data": data.data}
        return {"type": "image", "source": source}
    if data is None and media_type in (_PDF, None):
        source = {"type": "url", "url": media.url}
    elif data is not None and media_type == _PDF:
        source = {"type": "base64", "media_type": media_type, "data": data.data}
    elif data is not None and media_type == "text/plain":
        source = {"type": "text", "media_type": media_type, "data": text_of(data, media.field)}
    if source is None:
        takes = "PDF and images" if data is None else f"PDF, plain text, {', '.join(_IMAGES)}"
        drops.unsupported(media.field, f"Anthropic's API takes {takes}, not {media_type}")
        return None
    return {"type": "document", "source": source, **({"title": media.name} if media.name else {})}
