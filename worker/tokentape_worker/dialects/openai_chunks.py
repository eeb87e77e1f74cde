"""Puts the chunks of one OpenAI-compatible stream right, one after the other.

Two ways through. `take_clean` reads a chunk straight into its model and looks at the few things that go wrong: for a
chunk that needs nothing, which is nearly every one, that is all, and its bytes are published as they came. Whatever it
does not like goes through `put_right`, on plain objects, where the rules stand. A chunk that comes out of it unchanged
is published as it came too. Both keep the same state, so they can alternate.

Rules whose reason is not plain from the code:

- Azure's first chunk has no id and no choices. It is held until the id is known, because a job has one id.
- usage is the last that is not null. openai-python takes the last, null or not: so once seen, every later chunk has it.
- with n = 1 every index is 0: there are servers that count up. With n > 1 a missing index is the place in the list.
- a stream may start over midway: gateways try another upstream inside an answer that has begun. An id that had been the
  same for chunk after chunk changes, a role comes again, and nothing had finished. Joined, the text would be doubled.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import ValidationError

from tokentape.chunk import ChatCompletionChunk, ChunkChoice
from tokentape.job import ErrorInfo

from ..classify import from_payload
from . import Call, Piece
from .body import write_json
from .openai_delta import REASONING_NAMES, ChoiceState, fix_delta
from .openai_usage import normalised_usage

OBJECT: Final = "chat.completion.chunk"

_FINISH_REASONS: Final = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
#: What other vocabularies call them; anything else is `stop`, and stays readable as `native_finish_reason`.
_SYNONYMS: Final = {
    "max_tokens": "length",
    "model_length": "length",
    "max_output_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "tool_call": "tool_calls",
    "safety": "content_filter",
    "sensitive": "content_filter",
    "refusal": "content_filter",
    "recitation": "content_filter",
    "content-filter": "content_filter",
}
#: Reasons that say that the answer is not one.
_FAILURES: Final = frozenset({"error", "failed", "abort", "network_error", "insufficient_system_resource"})
#: Unknown fields that mean something here, by level. All others pass.
_CHUNK_EXTRAS: Final = frozenset({"error", "x_groq"})
_CHOICE_EXTRAS: Final = frozenset({"error", "usage", "message", "native_finish_reason"})
_DELTA_EXTRAS: Final = frozenset({*REASONING_NAMES, "reasoning_details"})
#: Chunks of no content and no id that are held, at most.
_MAX_HELD: Final = 4
#: A field that does not fit the chunk's model is dropped, unless it is one of these: then the answer cannot be trusted.
_ESSENTIAL: Final = frozenset(
    ["choices", "index", "content", "refusal", "reasoning_content", "tool_calls", "arguments"]
)

_read_chunk: Final = ChatCompletionChunk.__pydantic_validator__.validate_json


class Malformed(ValueError):
    """A chunk that cannot be put right."""


class Chunks:
    """The state of one stream. `failure` is set where a chunk says that the call has failed."""

    def __init__(self, call: Call) -> None:
        self.choices: dict[int, ChoiceState] = {}
        self.failure: ErrorInfo | None = None
        #: A choice came as a whole message: nothing more is to come for it, with or without an end marker.
        self.whole = False
        self._call = call
        self._id = ""
        self._model = ""
        self._created = 0
        self._usage: dict[str, Any] | None = None
        self._held: list[dict[str, Any]] = []
        self._last_id = ""
        self._id_is_steady = False

    def take_clean(self, data: bytes) -> Piece | None:
        """The piece of a chunk that is as it should be. None, and nothing has changed, for any other."""
        try:
            chunk: ChatCompletionChunk = _read_chunk(data, strict=True)
        except ValidationError:
            return None
        if (
            chunk.id != self._id
            or chunk.model != self._model
            or chunk.created != self._created
            or chunk.object != OBJECT
            or chunk.usage is not None
            or self._usage is not None
            or len(chunk.choices) != 1
            or "object" not in chunk.__pydantic_fields_set__
            or (chunk.__pydantic_extra__ and not _CHUNK_EXTRAS.isdisjoint(chunk.__pydantic_extra__))
            or b"NaN" in data
            or b"Infinity" in data
        ):
            return None
        choice = chunk.choices[0]
        state = self.choices.get(choice.index)
        if state is None or not self._take_clean_choice(choice, state):
            return None
        self._id_is_steady = self._last_id == self._id
        self._last_id = self._id
        return Piece(chunk, data)

    def put_right(self, data: bytes | None, value: dict[str, Any]) -> list[Piece]:
        """The pieces of a chunk of this JSON value, which was read from `data`; None: not from a text of its own.

        Raises Malformed.
        """
        if self._starts_over(value):
            self.failure = ErrorInfo(
                type="upstream_error",
                code="stream_restarted",
                message="started its answer over midway, under another id",
                retryable=True,
            )
            return []
        if self._must_wait(value):
            self._held.append(value)
            return []
        self._settle_identity(value)
        pieces = [piece for held in self._held for piece in self._pieces(None, held)]
        self._held.clear()
        return pieces + self._pieces(data, value)

    def synthesise_end(self) -> Piece | None:
        """A last chunk with a finish reason for every choice that has none. Call it where each choice `may_end`."""
        open_ = {index: state for index, state in self.choices.items() if state.finish_reason is None}
        if not open_:
            return None
        for state in open_.values():
            state.finish_reason = "tool_calls" if state.calls else "stop"
        choices: list[dict[str, Any]] = [
            {"index": index, "delta": {}, "finish_reason": state.finish_reason, "finish_reason_synthesised": True}
            for index, state in open_.items()
        ]
        return self._piece({"choices": choices})

    def finished(self) -> bool:
        """Whether there are choices, and each came to a finish reason."""
        return bool(self.choices) and all(state.finish_reason for state in self.choices.values())

    def may_end(self) -> bool:
        """Whether every choice would be whole if this were the end: it says something, and its arguments parse."""
        return bool(self.choices) and all(
            state.finish_reason or ((state.said or state.calls) and state.calls.are_whole())
            for state in self.choices.values()
        )

    def _take_clean_choice(self, choice: ChunkChoice, state: ChoiceState) -> bool:
        delta = choice.delta
        reason = choice.finish_reason
        if (
            delta.role is not None
            or delta.function_call is not None
            or delta.audio is not None
            or delta.reasoning_content == ""
            or delta.refusal is not None
            or "delta" not in choice.__pydantic_fields_set__
            or (reason is not None and (state.finish_reason is not None or reason not in _FINISH_REASONS))
            or (delta.__pydantic_extra__ and not _DELTA_EXTRAS.isdisjoint(delta.__pydantic_extra__))
            or (choice.__pydantic_extra__ and not _CHOICE_EXTRAS.isdisjoint(choice.__pydantic_extra__))
        ):
            return False
        if delta.tool_calls and (len(delta.tool_calls) != 1 or not state.calls.take_fragment(delta.tool_calls[0])):
            return False
        if delta.content:
            state.said = True
        if delta.reasoning_content:
            state.thought = True
        if reason is not None:
            state.finish_reason = reason
        return True

    def _starts_over(self, value: dict[str, Any]) -> bool:
        id_ = value.get("id")
        if not isinstance(id_, str) or not id_ or id_ == self._last_id:
            self._id_is_steady = self._id_is_steady or (bool(id_) and id_ == self._last_id)
            return False
        was_steady, self._id_is_steady = self._id_is_steady, False
        self._last_id = id_
        if not was_steady or any(state.finish_reason for state in self.choices.values()):
            return False
        for place, choice in enumerate(choices_of(value)):
            delta = choice.get("delta")
            if isinstance(delta, dict) and delta.get("role") and self._index(choice, place) in self.choices:
                return True
        return False

    def _must_wait(self, value: dict[str, Any]) -> bool:
        return not self._id and not value.get("id") and not choices_of(value) and len(self._held) < _MAX_HELD

    def _settle_identity(self, value: dict[str, Any]) -> None:
        if self._id:
            return
        id_ = self._call.answer_id or value.get("id")
        self._id = str(id_) if id_ else f"chatcmpl-{self._call.job_id.removeprefix('job_')}"
        model = value.get("model")
        self._model = model if isinstance(model, str) and model else self._call.model
        self._created = _whole_number(value.get("created")) or self._call.created

    def _pieces(self, data: bytes | None, value: dict[str, Any]) -> list[Piece]:
        choices = [self._choice(choice, self._index(choice, place)) for place, choice in enumerate(choices_of(value))]
        usage = _usage_of(value)
        if usage is not None:
            self._usage = usage
        if len(choices) < 2 or (not self.whole and len({choice["index"] for choice in choices}) == len(choices)):
            return [self._piece({**value, "choices": choices}, data, value)]
        # One chunk for each: whole messages are long, and two entries of one index are no chunk that readers know.
        return [self._piece({**value, "choices": [choice]}) for choice in choices]

    def _piece(self, value: dict[str, Any], data: bytes | None = None, sent: dict[str, Any] | None = None) -> Piece:
        """A chunk of these choices, with what a job has one of. `data` is published where it says just that."""
        fixed = {**value, "id": self._id, "object": OBJECT, "created": self._created, "model": self._model}
        fixed.pop("error", None)
        if self._usage is not None:
            fixed["usage"] = self._usage
        elif "usage" in fixed:
            fixed["usage"] = None
        if data is not None and fixed == sent and b"NaN" not in data and b"Infinity" not in data:
            try:
                return Piece(_read_chunk(data, strict=True), data)
            except ValidationError:
                pass  # invalid UTF-8, half a surrogate pair, a field of a wrong type
        return _written(fixed)

    def _index(self, choice: dict[str, Any], place: int) -> int:
        if self._call.n == 1:
            return self._call.choice
        index = choice.get("index")
        return index if isinstance(index, int) and not isinstance(index, bool) and index >= 0 else place

    def _choice(self, choice: dict[str, Any], index: int) -> dict[str, Any]:
        state = self.choices.get(index)
        if state is None:
            hex_id = self._call.job_id.removeprefix("job_")[:16]
            state = self.choices[index] = ChoiceState(f"call_{hex_id}_{index}")
        fixed = {name: value for name, value in choice.items() if name not in ("message", "usage", "error")}
        fixed["index"] = index
        fixed["delta"] = fix_delta(_delta_of(choice, state), state)
        if isinstance(choice.get("message"), dict) and not isinstance(choice.get("delta"), dict):
            self.whole = True
        if not isinstance(choice.get("logprobs"), dict | None):
            del fixed["logprobs"]
        self._finish(fixed, state)
        if isinstance(choice.get("error"), dict):
            self.failure = self.failure or from_payload({"error": choice["error"]})
        return fixed

    def _finish(self, choice: dict[str, Any], state: ChoiceState) -> None:
        reason, native = _word(choice.get("finish_reason")), _word(choice.get("native_finish_reason"))
        if "finish_reason" in choice or reason:
            choice["finish_reason"] = None
        for word in (reason[:100], native[:100]):
            if word in _FAILURES or "malformed_function_call" in word:
                message = f"ended its answer with {word}"
                failure = ErrorInfo(type="upstream_error", code=word, message=message, retryable=True)
                self.failure = self.failure or failure
                return
        if reason and state.finish_reason is None:
            known = reason if reason in _FINISH_REASONS else _SYNONYMS.get(reason, "stop")
            state.finish_reason = choice["finish_reason"] = known
            if known != reason and not native:
                choice["native_finish_reason"] = reason


def _written(value: dict[str, Any]) -> Piece:
    """The piece of an object that was put right, without the fields that the chunk's model refuses."""
    for _ in range(8):
        try:
            data = write_json(value)
        except ValueError as error:
            raise Malformed(str(error)) from None
        try:
            return Piece(_read_chunk(data, strict=True), data)
        except ValidationError as error:
            for wrong in error.errors(include_url=False, include_context=False, include_input=False):
                _drop(value, wrong["loc"])
    raise Malformed("its fields are of wrong types")


def _drop(value: Any, loc: tuple[int | str, ...]) -> None:
    if not loc or loc[-1] in _ESSENTIAL:
        raise Malformed(f"{'.'.join(map(str, loc)) or 'it'} is of a wrong type")
    try:
        for step in loc[:-1]:
            value = value[step]
        del value[loc[-1]]
    except (KeyError, IndexError, TypeError):
        raise Malformed(f"{'.'.join(map(str, loc))} is of a wrong type") from None


def choices_of(value: dict[str, Any]) -> list[dict[str, Any]]:
    choices = value.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _usage_of(value: dict[str, Any]) -> dict[str, Any] | None:
    """The usage that a chunk reports, wherever it stands."""
    groq = value.get("x_groq")
    places = [value, *([groq] if isinstance(groq, dict) else []), *choices_of(value)]
    for place in places:
        if (usage := normalised_usage(place.get("usage"))) is not None:
            return usage
    return None


def _delta_of(choice: dict[str, Any], state: ChoiceState) -> dict[str, Any]:
    delta, message = choice.get("delta"), choice.get("message")
    if isinstance(delta, dict):
        return delta
    if isinstance(delta, str):
        return {"content": delta}
    # A whole message after its pieces is a summary of them.
    repeats = state.said or state.thought or state.calls
    return message if isinstance(message, dict) and not repeats else {}


def _whole_number(value: object) -> int:
    try:
        return max(0, int(value)) if isinstance(value, int | float | str) else 0
    except (ValueError, OverflowError):
        return 0


def _word(value: object) -> str:
    return value.strip().lower() if isinstance(value, str) else ""
