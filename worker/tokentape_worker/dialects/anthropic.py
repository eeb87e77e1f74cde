"""The Anthropic dialect: POST …/messages, and the events of a message as chat.completion.chunk objects.

| event | chunk |
|---|---|
| message_start | the role; id and model of the answer |
| content_block_start, _delta, _stop | see anthropic_blocks |
| message_delta | the finish reason, and the usage, whose counts are cumulative |
| message_stop | the end marker |
| error | the job's error |
| ping, and whatever is not known | nothing |

The `type` inside the data decides, not the event's name, which gateways leave out. Another message_start with the same
id is a repetition; with another id, a gateway has begun anew in the middle, and joined the text would be doubled.

A message that comes as one JSON text (`stream: false`) is read block by block like one that was streamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tokentape.job import ErrorInfo
from tokentape.settings import Upstream
from tokentape.translation import translate

from ..classify import from_payload, is_error
from ..sse import Event, EventTooLarge
from . import Call, Piece, Verdict, WireRequest
from .anthropic_blocks import Blocks
from .body import Body, read_json
from .native_chunks import ChunkWriter, Unwritable, failure, number

DONE: Final = b"[DONE]"
#: The version whose answers are read here. A later one refuses fields that clients still send.
VERSION: Final = "2023-06-01"

_FINISH_REASONS: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class Anthropic:
    """The dialect. It has no state; one serves all upstreams. The API gives one answer to a call."""

    one_answer = True

    def request(self, body: Mapping[str, Any], upstream: Upstream, *, native: bool = False) -> WireRequest:
        """How to ask. Raises InvalidRequest for what the API has no word for."""
        translation = translate(
            "anthropic",
            body,
            native=native,
            drop_unsupported=upstream.drop_unsupported,
            default_max_tokens=upstream.default_max_tokens,
        )
        return WireRequest(
            path=translation.path,
            headers={"anthropic-version": upstream.anthropic_version or VERSION},
            body=translation.body,
            streamed=translation.streamed,
            dropped=translation.dropped,
        )

    def adapter(self, call: Call) -> AnthropicAdapter:
        """A reader for one answer."""
        return AnthropicAdapter(call)


class AnthropicAdapter:
    """Reads one answer."""

    def __init__(self, call: Call) -> None:
        self._body = Body(call.max_event_bytes)
        self._index = call.choice
        self._chunks = ChunkWriter(call)
        self._blocks = Blocks(self._chunks, call.choice)
        self._message_id: object = None
        self._counts: dict[str, int] = {}
        self._usage_written: dict[str, Any] | None = None
        self._error: ErrorInfo | None = None
        self._begun = False
        self._sentinel = False
        self._synthesised = False
        self._closing = False
        self._noise = False

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
        finished = self._error is None and self._chunks.finished() and not self._synthesised
        if self._error is None and not self._chunks.finished():
            self._error = self._truncated()
        return pieces, Verdict(self._error, finished, self._sentinel, self._synthesised)

    def _take_all(self, events: list[Event]) -> list[Piece]:
        pieces: list[Piece] = []
        for event in events:
            if self.ended:
                break
            try:
                pieces += self._take(event)
            except Unwritable as error:
                self._error = failure("malformed_response", f"sent what no chunk can hold: {error}")
        return pieces

    def _take(self, event: Event) -> list[Piece]:
        text = event.data.strip()
        if not text or text.startswith(DONE):
            return []
        try:
            value = read_json(text)
        except ValueError:
            self._take_nonsense(event)
            return []
        if isinstance(value, list):
            value = next((entry for entry in value if isinstance(entry, dict)), None)
        if not isinstance(value, dict):
            return []
        return self._take_value(value, event.name)

    def _take_value(self, value: dict[str, Any], name: str) -> list[Piece]:
        kind = value.get("type")
        if isinstance(kind, str) and kind.startswith("content_block_"):
            return self._blocks.take(kind, value)
        pieces: list[Piece] = []
        if kind == "message_start":
            pieces = self._start(value.get("message"))
        elif kind == "message_delta":
            pieces = self._delta(value)
        elif kind == "message_stop":
            self._sentinel = True
            pieces = self._end()
        elif kind == "message" and isinstance(value.get("content"), list):
            pieces = self._whole(value)
        elif kind == "error" or name == "error" or (kind is None and is_error(value)):
            self._error = from_payload(value)
        return pieces

    def _take_nonsense(self, event: Event) -> None:
        self._noise = True
        if event.name == "error":
            self._error = from_payload({"message": event.data[:200].decode("utf-8", "replace")})
        elif not self._closing and not event.stray and event.name != "ping":
            self._error = failure("malformed_response", "sent an event that is no JSON")

    def _start(self, message: object) -> list[Piece]:
        if not isinstance(message, dict):
            return []
        id_ = message.get("id")
        if self._begun:
            if id_ != self._message_id:
                self._error = failure("stream_restarted", "started its answer over midway, under another id")
            return []
        self._begun = True
        self._message_id = id_
        self._chunks.identify(id_, message.get("model"))
        self._count(message.get("usage"))
        return self._chunks.begin(self._index)

    def _delta(self, value: dict[str, Any]) -> list[Piece]:
        self._count(value.get("usage"))
        delta = value.get("delta")
        reason = delta.get("stop_reason") if isinstance(delta, dict) else None
        if self._chunks.finished():
            return self._later_usage()
        if not isinstance(delta, dict) or not isinstance(reason, str) or not reason:
            return []
        pieces = self._blocks.stop_all()
        extra: dict[str, Any] = {}
        if reason == "refusal":
            pieces += self._refusal(delta)
        if isinstance(delta.get("stop_sequence"), str):
            extra["stop_sequence"] = delta["stop_sequence"]
        if reason not in _FINISH_REASONS or reason == "pause_turn":
            extra["native_finish_reason"] = reason[:100]
        self._usage_written = self._usage()
        word = _FINISH_REASONS.get(reason, "stop")
        return pieces + self._chunks.finish(self._index, word, self._usage_written, **extra)

    def _later_usage(self) -> list[Piece]:
        """Gateways may count again after the stop reason."""
        usage = self._usage()
        if usage is None or usage == self._usage_written:
            return []
        self._usage_written = usage
        return [self._chunks.usage(usage)]

    def _refusal(self, delta: dict[str, Any]) -> list[Piece]:
        details = delta.get("stop_details")
        said = details.get("explanation") if isinstance(details, dict) else None
        if not isinstance(said, str) or not said:
            return []
        return [*self._chunks.begin(self._index), self._chunks.delta(self._index, {"refusal": said})]

    def _end(self) -> list[Piece]:
        """The upstream says that this was all."""
        pieces = self._blocks.stop_all()
        state = self._chunks.state(self._index)
        if state.finish_reason is not None:
            return pieces
        if not (state.said or state.calls) or not self._blocks.are_whole:
            self._error = failure("truncated", "sent the end marker, but neither a stop reason nor a whole answer")
            return pieces
        self._synthesised = True
        reason = "tool_calls" if state.calls else "stop"
        return pieces + self._chunks.finish(self._index, reason, self._usage(), finish_reason_synthesised=True)

    def _whole(self, message: dict[str, Any]) -> list[Piece]:
        """A message that was not streamed."""
        pieces = self._start(message)
        if self._error is not None:
            return pieces
        for place, block in enumerate(message["content"]):
            pieces += self._blocks.take("content_block_start", {"index": place, "content_block": block})
            pieces += self._blocks.take("content_block_stop", {"index": place})
        pieces += self._delta({"delta": message, "usage": message.get("usage")})
        self._sentinel = self._chunks.finished()
        return pieces

    def _count(self, usage: object) -> None:
        """Cumulative: what is said last stands, and what is not said stays."""
        if not isinstance(usage, dict):
            return
        details = usage.get("output_tokens_details")
        thinking = details.get("thinking_tokens") if isinstance(details, dict) else None
        for name, value in (*usage.items(), ("thinking_tokens", thinking)):
            if (count := number(value)) is not None:
                self._counts[name] = count

    def _usage(self) -> dict[str, Any] | None:
        """The API's prompt count leaves out what was read from the cache, or written to it; ours has all of it."""
        counts = self._counts
        if not counts:
            return None
        cached = counts.get("cache_read_input_tokens", 0)
        written = counts.get("cache_creation_input_tokens", 0)
        prompt = counts.get("input_tokens", 0) + cached + written
        completion = counts.get("output_tokens", 0)
        usage: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        }
        if "thinking_tokens" in counts:
            usage["completion_tokens_details"] = {"reasoning_tokens": counts["thinking_tokens"]}
        return usage

    def _truncated(self) -> ErrorInfo:
        if self._begun:
            return failure("truncated", "ended its answer midway, without a stop reason")
        if self._noise:
            return failure("malformed_response", "sent what is no message")
        return failure("empty_response", "sent an empty answer")

    def _too_large(self, error: EventTooLarge) -> list[Piece]:
        pieces = self._take_all(error.events)
        message = f"sent an event of more than {error.max_event_bytes} bytes"
        self._error = self._error or ErrorInfo(type="output_too_large", message=message)
        return pieces
