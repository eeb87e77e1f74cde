"""The OpenAI dialect: POST …/chat/completions, and whatever the many servers that speak it answer.

What an event of the stream is, in this order:

- nothing: blank, `null`, a comment or a keep-alive that a gateway wrapped as data;
- `[DONE]`: the end marker. What follows it is not read;
- an error object, under `error` or bare: the job's error. Text beside it in the same chunk still counts;
- a chunk, or a whole completion: openai_chunks puts it right;
- JSON of some other kind: ignored. No JSON at all: the answer is broken, for a lost chunk would be lost text.

And what the end is, once the body is over:

| choices that finished | end marker | verdict |
|---|---|---|
| all | either | complete; without the marker only if as many choices came as were asked for |
| not all | came | complete, with a finish reason of our own, if each says something and its arguments parse |
| not all | no | failed: truncated |

Every failure of this table may be retried. A completion sent as one JSON text is its own end marker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from tokentape.job import ErrorInfo
from tokentape.settings import Upstream

from ..classify import from_payload, is_error, redact, shorten
from ..sse import Event, EventTooLarge
from . import Call, Piece, Verdict, WireRequest
from .body import Body, read_json
from .openai_chunks import Chunks, Malformed, choices_of

DONE: Final = b"[DONE]"
_KEEP_ALIVE: Final = re.compile(rb'(?i)["\[(]?(?:ping|pong|heartbeat|keep[-_]?alive|processing)[")\]]?\.{0,3}')
#: How much is quoted of an answer that is none.
_QUOTED_BYTES: Final = 200


class OpenAI:
    """The dialect. It has no state; one serves all upstreams."""

    one_answer = False

    def request(self, body: Mapping[str, Any], upstream: Upstream, *, native: bool = False) -> WireRequest:  # noqa: ARG002
        """How to ask. Streamed, with usage, unless the body says otherwise. A native body is the same.

        A body with `"stream_options": null` is sent without any, for servers that refuse them.
        """
        streamed = body.get("stream") is not False
        wire = {**body, "stream": streamed}
        if streamed:
            _set_stream_options(wire, upstream)
        return WireRequest(path="/chat/completions", headers={}, body=wire, streamed=streamed)

    def adapter(self, call: Call) -> OpenAIAdapter:
        """A reader for one answer."""
        return OpenAIAdapter(call)


def _set_stream_options(wire: dict[str, Any], upstream: Upstream) -> None:
    if "stream_options" in wire:
        if wire["stream_options"] is None:
            del wire["stream_options"]
        elif isinstance(wire["stream_options"], dict):
            wire["stream_options"] = {"include_usage": True, **wire["stream_options"]}
    else:
        wire["stream_options"] = {"include_usage": True}
        if urlsplit(upstream.base_url).hostname == "api.openai.com":
            # Padding against eavesdroppers on the wire, which would be stored with every chunk. Others may not know it.
            wire["stream_options"]["include_obfuscation"] = False


class OpenAIAdapter:
    """Reads one answer."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._body = Body(call.max_event_bytes)
        self._chunks = Chunks(call)
        self._error: ErrorInfo | None = None
        self._sentinel = False
        self._synthesised = False
        self._closing = False
        self._noise = b""

    @property
    def ended(self) -> bool:
        """Whether the end marker or an error came."""
        return self._sentinel or self._error is not None

    def feed(self, data: bytes) -> list[Piece]:
        """The pieces that a read completes."""
        if self.ended:
            return []
        try:
            return self._take_all(self._body.feed(data))
        except EventTooLarge as error:
            return self._too_large(error)

    def close(self) -> tuple[list[Piece], Verdict]:
        """The last pieces, and the verdict."""
        pieces: list[Piece] = []
        self._closing = True
        if not self.ended:
            try:
                pieces = self._take_all(self._body.flush())
            except EventTooLarge as error:
                pieces = self._too_large(error)
        if self._chunks.whole and not self.ended:
            pieces += self._end()
        finished = self._error is None and self._chunks.finished() and not self._synthesised
        if self._error is None and not self._sentinel and not self._is_complete():
            self._error = self._truncated()
            finished = finished and self._has_all_choices()
        return pieces, Verdict(
            error=self._error, finished=finished, sentinel=self._sentinel, synthesised=self._synthesised
        )

    def _take_all(self, events: list[Event]) -> list[Piece]:
        pieces: list[Piece] = []
        for event in events:
            if self.ended:
                break
            if not event.name and not event.stray and (piece := self._chunks.take_clean(event.data)) is not None:
                pieces.append(piece)
            elif event.stray:
                pieces += self._take_stray(event.data)
            else:
                pieces += self._take(event.data, event.name)
        return pieces

    def _take(self, data: bytes, name: str) -> list[Piece]:
        text = data.strip()
        while text.startswith(b"data:"):  # a gateway that wrapped the line once more
            text = text[5:].lstrip()
        if text.startswith(DONE):
            self._sentinel = True
            return self._end()
        if not text or text.startswith(b":") or _KEEP_ALIVE.fullmatch(text) or _KEEP_ALIVE.fullmatch(name.encode()):
            return []
        try:
            value = read_json(text)
        except ValueError:
            self._take_nonsense(text, name)
            return []
        return self._take_value(text, value, name)

    def _take_value(self, text: bytes | None, value: object, name: str) -> list[Piece]:
        if isinstance(value, list):
            return [piece for entry in value if not self.ended for piece in self._take_value(None, entry, name)]
        if not isinstance(value, dict):
            if value is not None:
                self._take_nonsense(text or b"", name)
            return []
        if name == "error" or is_error(value):
            pieces = self._put_right(None, value) if _says_something(value) else []
            self._error = from_payload(value)
            return pieces
        if isinstance(value.get("choices"), list) or value.get("usage") or value.get("id"):
            return self._put_right(text, value)
        self._noise = self._noise or (text or b"")[:_QUOTED_BYTES]
        return []

    def _take_stray(self, data: bytes) -> list[Piece]:
        """Lines that are no field of SSE: JSON without `data:`, as one text or one a line, or noise."""
        for texts in ([data], data.split(b"\n")):
            values = [(text.strip(), value) for text in texts if (value := _object(text)) is not None]
            if values:
                return [
                    piece for text, value in values if not self.ended for piece in self._take_value(text, value, "")
                ]
        self._noise = self._noise or data[:_QUOTED_BYTES]
        return []

    def _take_nonsense(self, text: bytes, name: str) -> None:
        self._noise = text[:_QUOTED_BYTES]
        if name == "error":
            self._error = from_payload({"message": text[:_QUOTED_BYTES].decode("utf-8", "replace")})
        elif not self._closing:  # at the end of the body it is half an event: the verdict is that it was cut
            self._error = _failure("malformed_response", f"sent what is no chunk: {_quoted(text)}")

    def _put_right(self, text: bytes | None, value: dict[str, Any]) -> list[Piece]:
        try:
            pieces = self._chunks.put_right(text, value)
        except (Malformed, RecursionError) as error:
            self._error = _failure("malformed_response", f"sent a chunk that cannot be read: {error}")
            return []
        self._error = self._error or self._chunks.failure
        return pieces

    def _end(self) -> list[Piece]:
        """The upstream says that this was all."""
        if self._chunks.finished():
            return []
        if not self._chunks.choices:
            self._error = _failure("empty_response", "sent the end marker and nothing before it")
            return []
        if not self._chunks.may_end():
            self._error = _failure("truncated", "sent the end marker, but neither a finish reason nor a whole answer")
            return []
        piece = self._chunks.synthesise_end()
        self._synthesised = piece is not None
        return [piece] if piece is not None else []

    def _is_complete(self) -> bool:
        return self._chunks.finished() and (self._synthesised or self._chunks.whole or self._has_all_choices())

    def _has_all_choices(self) -> bool:
        return len(self._chunks.choices) >= self._call.n

    def _truncated(self) -> ErrorInfo:
        if self._chunks.choices:
            return _failure("truncated", "ended its answer midway, without a finish reason")
        if self._noise:
            return _failure("malformed_response", f"sent what is no chat completion: {_quoted(self._noise)}")
        return _failure("empty_response", "sent an empty answer")

    def _too_large(self, error: EventTooLarge) -> list[Piece]:
        pieces = self._take_all(error.events)
        message = f"sent an event of more than {error.max_event_bytes} bytes"
        self._error = self._error or ErrorInfo(type="output_too_large", message=message)
        return pieces


def _failure(code: str, message: str) -> ErrorInfo:
    return ErrorInfo(type="upstream_error", code=code, message=message, retryable=True)


def _quoted(data: bytes) -> str:
    return shorten(redact(repr(data[:_QUOTED_BYTES].decode("utf-8", "replace"))))


def _object(text: bytes) -> dict[str, Any] | list[Any] | None:
    if text.lstrip()[:1] not in (b"{", b"["):
        return None
    try:
        value = read_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict | list) else None


def _says_something(value: dict[str, Any]) -> bool:
    """Whether a chunk that carries an error carries text as well."""
    deltas = [choice.get("delta") for choice in choices_of(value)]
    return any(isinstance(delta, dict) and (delta.get("content") or delta.get("tool_calls")) for delta in deltas)
