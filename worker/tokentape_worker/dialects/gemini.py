"""The Gemini dialect: POST …/models/MODEL:streamGenerateContent, and its responses as chat.completion.chunk objects.

Every event is a whole response with a piece of each candidate; there are no event names and no end marker. A finish
reason may stand on every one of them, or on empty ones before the text. So what ends a choice, its usage and what
refers to its whole text are written once the body is over. Without `alt=sse` the body is one JSON array of the same.

| reason | finish reason |
|---|---|
| STOP | stop; tool_calls where there were calls |
| MAX_TOKENS, CONTINUATION | length |
| SAFETY, RECITATION and their like; a blocked prompt without candidates | content_filter |
| MALFORMED_FUNCTION_CALL, MALFORMED_RESPONSE, UNEXPECTED_TOOL_CALL, … | none: failed, and worth another call |
| MISSING_THOUGHT_SIGNATURE | none: failed, and would again, because the request lacks it |

A body that is over before every candidate has a reason was cut, and so was one with fewer candidates than asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tokentape.job import ErrorInfo
from tokentape.settings import Upstream
from tokentape.translation import translate

from ..classify import from_payload, is_error, redact, shorten
from ..sse import Event, EventTooLarge
from . import Call, Piece, Verdict, WireRequest
from .body import Body, read_json
from .gemini_candidate import Candidate
from .native_chunks import ChunkWriter, Unwritable, failure, number

_FINISH_REASONS: Final = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    **dict.fromkeys(
        ("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "OTHER", "NO_IMAGE",
         "MODEL_ARMOR", "ESCALATION", "PUP_LIMITED_DISABLED"),
        "content_filter",
    ),
}  # fmt: skip
#: Whether another call may go better.
_FAILURES: Final = {
    "MALFORMED_FUNCTION_CALL": True,
    "MALFORMED_RESPONSE": True,
    "UNEXPECTED_TOOL_CALL": True,
    "TOO_MANY_TOOL_CALLS": True,
    "MISSING_THOUGHT_SIGNATURE": False,
}
#: As many as the API may be asked for, and more.
_MAX_CANDIDATES: Final = 128
#: Of what a candidate says of its end no more is looked at.
_SAID_CHARS: Final = 2000


class Gemini:
    """The dialect. It has no state; one serves all upstreams."""

    one_answer = False

    def request(self, body: Mapping[str, Any], upstream: Upstream, *, native: bool = False) -> WireRequest:
        """How to ask. Raises InvalidRequest for what the API has no word for."""
        translation = translate("gemini", body, native=native, drop_unsupported=upstream.drop_unsupported)
        return WireRequest(
            path=translation.path,
            headers={},
            body=translation.body,
            query={"alt": "sse"} if translation.streamed else {},
            streamed=translation.streamed,
            dropped=translation.dropped,
        )

    def adapter(self, call: Call) -> GeminiAdapter:
        """A reader for one answer."""
        return GeminiAdapter(call)


class GeminiAdapter:
    """Reads one answer."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._body = Body(call.max_event_bytes)
        self._chunks = ChunkWriter(call)
        self._candidates: dict[int, Candidate] = {}
        self._reasons: dict[int, str] = {}
        self._counts: dict[str, int] = {}
        self._error: ErrorInfo | None = None
        self._closing = False
        self._noise = False

    @property
    def ended(self) -> bool:
        """Whether an error came. There is no end marker."""
        return self._error is not None

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
        if not self.ended:
            try:
                pieces += self._end()
            except Unwritable as error:
                self._error = self._unwritable(error)
        finished = self._error is None and self._chunks.finished()
        return pieces, Verdict(self._error, finished, sentinel=False)

    def _take_all(self, events: list[Event]) -> list[Piece]:
        pieces: list[Piece] = []
        for event in events:
            if self.ended:
                break
            try:
                pieces += self._take(event)
            except Unwritable as error:
                self._error = self._unwritable(error)
        return pieces

    def _unwritable(self, error: Unwritable) -> ErrorInfo:
        return failure("malformed_response", f"sent what no chunk can hold: {error}")

    def _take(self, event: Event) -> list[Piece]:
        text = event.data.strip()
        if not text or text.startswith(b"[DONE]"):
            return []
        try:
            value = read_json(text)
        except ValueError:
            self._noise = True
            if not self._closing and not event.stray:
                self._error = failure("malformed_response", "sent an event that is no JSON")
            return []
        pieces: list[Piece] = []
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, dict) and not self.ended:
                pieces += self._take_response(entry)
        return pieces

    def _take_response(self, value: dict[str, Any]) -> list[Piece]:
        wrapped = value.get("response")
        if isinstance(wrapped, dict) and "candidates" not in value:
            value = wrapped
        candidates = value.get("candidates")
        if not isinstance(candidates, list) and is_error(value):
            self._error = from_payload(value)
            return []
        self._chunks.identify(value.get("responseId"), value.get("modelVersion"))
        self._count(value.get("usageMetadata"))
        pieces: list[Piece] = []
        listed = [entry for entry in candidates if isinstance(entry, dict)] if isinstance(candidates, list) else []
        unnumbered = all("index" not in candidate for candidate in listed)
        for place, candidate in enumerate(listed):
            # Protobuf leaves a zero out, and some gateways leave out every index: then the place has to do.
            pieces += self._take_candidate(candidate, place if unnumbered else 0)
        feedback = value.get("promptFeedback")
        blocked = feedback.get("blockReason") if isinstance(feedback, dict) else None
        if isinstance(blocked, str) and blocked and not self._candidates:
            for index in range(self._call.n):
                pieces += self._candidate(index).begin()
                self._reasons[index] = blocked
        return pieces

    def _take_candidate(self, candidate: dict[str, Any], place: int) -> list[Piece]:
        index = candidate.get("index", place)
        if self._call.n == 1:
            index = 0
        elif not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < _MAX_CANDIDATES:
            index = place
        if index >= _MAX_CANDIDATES:
            return []
        state = self._candidate(index)
        pieces = state.take(candidate)
        reason = candidate.get("finishReason")
        if not isinstance(reason, str) or reason in ("", "FINISH_REASON_UNSPECIFIED"):
            return pieces
        pieces += state.begin()
        if reason in _FAILURES:
            said = candidate.get("finishMessage")
            message = f"ended its answer with {reason}" + (f": {said[:_SAID_CHARS]}" if isinstance(said, str) else "")
            self._error = failure(reason.lower(), shorten(redact(message)), retryable=_FAILURES[reason])
        else:
            self._reasons[index] = reason
        return pieces

    def _candidate(self, index: int) -> Candidate:
        state = self._candidates.get(index)
        if state is None:
            state = self._candidates[index] = Candidate(self._chunks, self._call.choice + index)
        return state

    def _end(self) -> list[Piece]:
        """The body is over: what ends each choice, and the usage."""
        pieces = [piece for state in self._candidates.values() for piece in state.end()]
        for index, reason in self._reasons.items():
            pieces += self._finish(self._candidates[index], reason)
        if (usage := self._usage()) is not None:
            pieces.append(self._chunks.usage(usage))
        if not self._candidates:
            code = "malformed_response" if self._noise else "empty_response"
            self._error = failure(code, "sent what is no response" if self._noise else "sent an empty answer")
        elif not self._chunks.finished() or len(self._candidates) < self._call.n:
            self._error = failure("truncated", "ended its answer midway, without a finish reason")
        return pieces

    def _finish(self, state: Candidate, reason: str) -> list[Piece]:
        word = _FINISH_REASONS.get(reason)
        if word is None:  # of image models, or newer than this table
            word = "content_filter" if "IMAGE" in reason or not state.said else "stop"
        native = {} if reason in ("STOP", "MAX_TOKENS") else {"native_finish_reason": reason[:100]}
        return state.finish(word, **native)

    def _count(self, usage: object) -> None:
        """Cumulative: what is said last stands, and what is not said stays."""
        if isinstance(usage, dict):
            self._counts |= {name: count for name, value in usage.items() if (count := number(value)) is not None}

    def _usage(self) -> dict[str, Any] | None:
        """Thoughts are counted beside the candidates or, by some servers, among them: the total tells."""
        counts = self._counts
        if "promptTokenCount" not in counts and "candidatesTokenCount" not in counts:
            return None
        prompt = counts.get("promptTokenCount", 0) + counts.get("toolUsePromptTokenCount", 0)
        answer, thoughts = counts.get("candidatesTokenCount", 0), counts.get("thoughtsTokenCount", 0)
        among = counts.get("totalTokenCount") == prompt + answer
        completion = answer if among else answer + thoughts
        usage: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": counts.get("totalTokenCount", prompt + completion),
        }
        if "cachedContentTokenCount" in counts:
            usage["prompt_tokens_details"] = {"cached_tokens": counts["cachedContentTokenCount"]}
        if "thoughtsTokenCount" in counts:
            usage["completion_tokens_details"] = {"reasoning_tokens": thoughts}
        return usage

    def _too_large(self, error: EventTooLarge) -> list[Piece]:
        pieces = self._take_all(error.events)
        message = f"sent an event of more than {error.max_event_bytes} bytes"
        self._error = self._error or ErrorInfo(type="output_too_large", message=message)
        return pieces
