"""The content blocks of one Anthropic message, as deltas of one choice.

| block | delta |
|---|---|
| text | content; its citations as annotations, at the end of the message |
| thinking | reasoning_content; at its end, with its signature, one of `thinking_blocks` |
| redacted_thinking | one of `thinking_blocks` |
| tool_use | a tool call; its input as fragments of arguments |
| everything else (what a server tool did, compaction, fallback, …) | nothing |

`thinking_blocks` are what the next turn has to send back, word for word and signed. They come whole and not in pieces,
so that the text of the thinking stands on the tape once while it flows and once where it is needed.

Annotations come all at once, as the API sends them: they have no index, and openai-python refuses a second list.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from . import Piece
from .native_chunks import ChunkWriter, arguments_json


@dataclass(slots=True)
class _Block:
    kind: str
    #: The first character of a text block within the content.
    starts_at: int = 0
    #: Of a tool_use block: the call's number, its arguments so far, and the input that it began with.
    call: int = 0
    fragments: list[str] = field(default_factory=list)
    input: object = None
    thinking: list[str] = field(default_factory=list)
    signature: str = ""
    citations: list[dict[str, Any]] = field(default_factory=list)


class Blocks:
    """The blocks of one message: those that are open, and how many thinking blocks there were.

    `are_whole`: the arguments of every call so far were JSON.
    """

    def __init__(self, chunks: ChunkWriter, index: int) -> None:
        self.are_whole = True
        self._chunks = chunks
        self._index = index
        self._open: dict[int, _Block] = {}
        self._thoughts = 0
        self._annotations: list[dict[str, Any]] = []

    def take(self, kind: str, value: dict[str, Any]) -> list[Piece]:
        """A content_block_ event."""
        place = value.get("index")
        if not isinstance(place, int):
            return []
        if kind == "content_block_delta":
            return self._delta(place, value.get("delta"))
        if kind == "content_block_start":
            return self._start(place, value.get("content_block"))
        return self._stop(place) if kind == "content_block_stop" else []

    def _start(self, place: int, block: object) -> list[Piece]:
        """What the block says at its start counts too."""
        if not isinstance(block, dict):
            return []
        pieces = self._stop(place)
        kind = block.get("type")
        state = _Block(str(kind), starts_at=self._chunks.state(self._index).length)
        if kind == "text":
            self._open[place] = state
            pieces += self._chunks.content(self._index, _text(block.get("text")))
            citations = block.get("citations")
            for citation in citations if isinstance(citations, list) else ():
                pieces += self._delta(place, {"type": "citations_delta", "citation": citation})
        elif kind == "thinking":
            self._open[place] = state
            pieces += self._delta(place, {"type": "thinking_delta", "thinking": block.get("thinking")})
            pieces += self._delta(place, {"type": "signature_delta", "signature": block.get("signature")})
        elif kind == "redacted_thinking" and isinstance(block.get("data"), str):
            pieces += self._thought({"type": "redacted_thinking", "data": block["data"]})
        elif kind == "tool_use":
            self._open[place] = state
            state.input = block.get("input")
            state.call, begun = self._chunks.call(self._index, block.get("id"), block.get("name"), "")
            pieces += begun
        return pieces

    def _delta(self, place: int, delta: object) -> list[Piece]:
        """A text may come for a block whose start was lost; anything else for none is of a kind that is not read."""
        if not isinstance(delta, dict):
            return []
        kind = delta.get("type")
        block = self._open.get(place)
        if kind == "text_delta" and (block is None or block.kind == "text"):
            return self._chunks.content(self._index, _text(delta.get("text")))
        return self._add(block, kind, delta) if block is not None else []

    def _add(self, block: _Block, kind: object, delta: dict[str, Any]) -> list[Piece]:
        if kind == "thinking_delta":
            text = _text(delta.get("thinking"))
            block.thinking.append(text)
            return self._chunks.reasoning(self._index, text)
        if kind == "signature_delta":
            block.signature = _text(delta.get("signature"))  # whole each time, so the last one stands
        elif kind == "citations_delta" and isinstance(delta.get("citation"), dict):
            block.citations.append(delta["citation"])
        elif kind == "input_json_delta" and block.kind == "tool_use":
            fragment = _text(delta.get("partial_json"))
            if fragment:
                block.fragments.append(fragment)
            return self._chunks.arguments(self._index, block.call, fragment)
        return []

    def _stop(self, place: int) -> list[Piece]:
        """The end of a block, or the beginning of another one in its place."""
        block = self._open.pop(place, None)
        if block is None:
            return []
        if block.kind == "tool_use":
            return self._end_of_call(block)
        if block.kind == "thinking" and block.signature:
            thinking = "".join(block.thinking)
            return self._thought({"type": "thinking", "thinking": thinking, "signature": block.signature})
        span = {"start_index": block.starts_at, "end_index": self._chunks.state(self._index).length}
        self._annotations += [_annotation(citation, span) for citation in block.citations]
        return []

    def stop_all(self) -> list[Piece]:
        """The message is over: so are the blocks whose end did not come. What they cited follows."""
        pieces = [piece for place in list(self._open) for piece in self._stop(place)]
        if self._annotations:
            pieces += self._chunks.begin(self._index)
            pieces.append(self._chunks.delta(self._index, {"annotations": self._annotations}))
            self._annotations = []
        return pieces

    def _end_of_call(self, block: _Block) -> list[Piece]:
        if not block.fragments:
            return self._chunks.arguments(self._index, block.call, arguments_json(block.input))
        try:
            json.loads("".join(block.fragments))
        except (ValueError, RecursionError):
            self.are_whole = False
        return []

    def _thought(self, thought: dict[str, Any]) -> list[Piece]:
        entry = {"index": self._thoughts, **thought}
        self._thoughts += 1
        return [*self._chunks.begin(self._index), self._chunks.delta(self._index, {"thinking_blocks": [entry]})]


def _annotation(citation: dict[str, Any], span: dict[str, int]) -> dict[str, Any]:
    """A page of the web as the API says it; a passage of a document in Anthropic's own words."""
    url = citation.get("url")
    if not isinstance(url, str):
        return {"type": "document_citation", "document_citation": {**citation, **span}}
    title = citation.get("title")
    quoted = {name: citation[name] for name in ("cited_text",) if isinstance(citation.get(name), str)}
    return {"type": "url_citation", "url_citation": {
        **span, "url": url, "title": title if isinstance(title, str) else None, **quoted,
    }}  # fmt: skip


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
