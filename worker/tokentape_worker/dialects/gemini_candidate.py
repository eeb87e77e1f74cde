"""One candidate of a Gemini answer, as one choice.

Parts: text is content, or reasoning where it is a `thought`; a functionCall comes whole and is one tool call, or, on
Vertex, in pieces (see gemini_arguments). A `thoughtSignature` is kept for the next turn, as Gemini's own OpenAI layer
names it: `extra_content.google.thought_signature`, of the tool call it came with, or of the message.

Written at the end, because they refer to the whole text: the signature of the message, and what the search grounded.
"""

from __future__ import annotations

from typing import Any, Final

from . import Piece
from .gemini_arguments import PartialArguments
from .native_chunks import ChunkWriter, arguments_json, number

#: Bytes of UTF-8 that begin no character.
_CONTINUATIONS: Final = bytes(range(0x80, 0xC0))
#: One page may be cited in a few bytes and is written out each time: real answers stay far below all three.
_MAX_CITATIONS: Final = 1000
_MAX_URL_CHARS: Final = 8192
_MAX_TITLE_CHARS: Final = 1000


class Candidate:
    """The state of one choice. `said`: there was content or a call."""

    def __init__(self, chunks: ChunkWriter, index: int) -> None:
        self._chunks = chunks
        self._index = index
        self._call: int | None = None  # the call whose arguments come in pieces
        self._arguments = PartialArguments()
        self._signature = ""
        self._text = bytearray()  # of the content, in UTF-8: what the search grounded is counted in its bytes
        self._grounding: dict[str, Any] | None = None

    @property
    def said(self) -> bool:
        """Whether there was content or a call."""
        state = self._chunks.state(self._index)
        return state.said or state.calls > 0

    def begin(self) -> list[Piece]:
        """The chunk with the role, if there was none yet."""
        return self._chunks.begin(self._index)

    def take(self, candidate: dict[str, Any]) -> list[Piece]:
        """What one response adds."""
        content = candidate.get("content")
        parts = content.get("parts") if isinstance(content, dict) else None
        pieces: list[Piece] = []
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict):
                pieces += self._part(part)
        pieces += self._logprobs(candidate.get("logprobsResult"))
        if isinstance(candidate.get("groundingMetadata"), dict):
            self._grounding = candidate["groundingMetadata"]
        return pieces

    def end(self) -> list[Piece]:
        """The body is over."""
        pieces = self._end_of_call()
        delta: dict[str, Any] = {}
        if self._signature:
            delta["extra_content"] = _signed(self._signature)
        if annotations := _annotations(self._grounding, bytes(self._text)):
            delta["annotations"] = annotations
        if delta:
            pieces += [*self.begin(), self._chunks.delta(self._index, delta)]
        return pieces

    def finish(self, reason: str, **extra: Any) -> list[Piece]:
        """The finish reason, once."""
        if reason == "stop" and self._chunks.state(self._index).calls:
            reason = "tool_calls"
        return self._chunks.finish(self._index, reason, **extra)

    def _part(self, part: dict[str, Any]) -> list[Piece]:
        signature = part.get("thoughtSignature")
        signature = signature if isinstance(signature, str) else ""
        if isinstance(part.get("functionCall"), dict):
            return self._function_call(part["functionCall"], signature)
        if signature:
            self._signature = signature
        text = part.get("text")
        if not isinstance(text, str):
            return []
        if part.get("thought"):
            return self._chunks.reasoning(self._index, text)
        self._text += text.encode("utf-8", "replace")
        return self._chunks.content(self._index, text)

    def _function_call(self, call: dict[str, Any], signature: str) -> list[Piece]:
        pieces: list[Piece] = []
        name = call.get("name")
        if name:
            pieces += self._end_of_call()
            in_pieces = bool(call.get("willContinue")) or "partialArgs" in call
            extra = {"extra_content": _signed(signature)} if signature else {}
            arguments = "" if in_pieces else arguments_json(call.get("args"))
            self._call, begun = self._chunks.call(self._index, call.get("id"), name, arguments, **extra)
            pieces += begun
            if not in_pieces:
                self._call = None
                return pieces
        if self._call is None:
            return pieces
        self._arguments.take(call.get("partialArgs"))
        return pieces if call.get("willContinue") else pieces + self._end_of_call()

    def _end_of_call(self) -> list[Piece]:
        if self._call is None:
            return []
        pieces = self._chunks.arguments(self._index, self._call, arguments_json(self._arguments.finish()))
        self._call, self._arguments = None, PartialArguments()
        return pieces

    def _logprobs(self, result: object) -> list[Piece]:
        chosen = result.get("chosenCandidates") if isinstance(result, dict) else None
        if not isinstance(result, dict) or not isinstance(chosen, list):
            return []
        top = result.get("topCandidates")
        entries = []
        for place, token in enumerate(chosen):
            entry = _token(token)
            if entry is None:
                continue
            at = top[place] if isinstance(top, list) and place < len(top) else None
            others = at.get("candidates") if isinstance(at, dict) else None
            others = others if isinstance(others, list) else []
            entry["top_logprobs"] = [one for other in others if (one := _token(other)) is not None]
            entries.append(entry)
        if not entries:
            return []
        return [*self.begin(), self._chunks.delta(self._index, {}, logprobs={"content": entries})]


def _token(value: object) -> dict[str, Any] | None:
    if not isinstance(value, dict) or not isinstance(value.get("token"), str):
        return None
    logprob = value.get("logProbability")
    known = isinstance(logprob, float) or (type(logprob) is int and abs(logprob) < 2**53)
    return {"token": value["token"], "logprob": logprob if known else None, "bytes": None}


def _signed(signature: str) -> dict[str, Any]:
    return {"google": {"thought_signature": signature}}


def _annotations(grounding: dict[str, Any] | None, text: bytes) -> list[dict[str, Any]]:
    """Citations of pages. Gemini counts bytes of the text in UTF-8, the API characters."""
    if grounding is None:
        return []
    pages = [_page(chunk) for chunk in _objects(grounding.get("groundingChunks"))]
    supports = _objects(grounding.get("groundingSupports"))
    spans = [_span(support.get("segment")) for support in supports]
    characters = _characters(text, {offset for span in spans for offset in span})
    annotations: list[dict[str, Any]] = []
    for support, (begin, end) in zip(supports, spans, strict=True):
        span = {"start_index": characters[begin], "end_index": characters[end]}
        places = support.get("groundingChunkIndices")
        for place in places if isinstance(places, list) else ():
            page = pages[place] if isinstance(place, int) and 0 <= place < len(pages) else None
            if page is not None and len(annotations) < _MAX_CITATIONS:
                annotations.append({"type": "url_citation", "url_citation": {**span, **page}})
    if not annotations:
        annotations = [{"type": "url_citation", "url_citation": page} for page in pages if page is not None]
    return annotations[:_MAX_CITATIONS]


def _page(chunk: dict[str, Any]) -> dict[str, Any] | None:
    web = chunk.get("web")
    if not isinstance(web, dict) or not isinstance(web.get("uri"), str) or len(web["uri"]) > _MAX_URL_CHARS:
        return None
    title = web.get("title")
    return {"url": web["uri"], "title": title[:_MAX_TITLE_CHARS] if isinstance(title, str) else None}


def _objects(value: object) -> list[dict[str, Any]]:
    return [entry if isinstance(entry, dict) else {} for entry in value] if isinstance(value, list) else []


def _span(segment: object) -> tuple[int, int]:
    """Where a segment begins and ends, in bytes. A zero is left out."""
    if not isinstance(segment, dict):
        return 0, 0
    begin, end = (number(segment.get(name)) or 0 for name in ("startIndex", "endIndex"))
    return begin, end


def _characters(text: bytes, offsets: set[int]) -> dict[int, int]:
    """How many characters begin before each offset. Goes through the text once, however many there are."""
    characters: dict[int, int] = {}
    at = count = 0
    for offset in sorted(offsets):
        count += len(text[at:offset].translate(None, _CONTINUATIONS))
        characters[offset] = count
        at = max(at, min(offset, len(text)))
    return characters
