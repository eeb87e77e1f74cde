"""Chunks written for an answer that came in another form: what the native dialects share.

One writer serves one choice or several of one call. It keeps the identity of the answer, whether a choice has begun,
said something, or finished, and gives tool calls their dense numbers and ids.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from tokentape.chunk import ChatCompletionChunk
from tokentape.job import ErrorInfo

from . import Call, Piece
from .body import write_json

#: Every chunk has the id and the model in it, so a long one would be written as often as there are chunks.
_MAX_NAME_CHARS: Final = 256

_read_chunk: Final = ChatCompletionChunk.__pydantic_validator__.validate_json


class Unwritable(ValueError):
    """What an upstream sent cannot stand in a chunk: it is nested too deeply, mostly."""


@dataclass(slots=True)
class ChoiceState:
    """One choice so far. `length`: characters of content, which citations count in."""

    begun: bool = False
    said: bool = False
    calls: int = 0
    length: int = 0
    finish_reason: str | None = None
    call_ids: set[str] = field(default_factory=set)


class ChunkWriter:
    """Writes the chunks of one call. `identify` it before the first, where the upstream says who it is."""

    def __init__(self, call: Call) -> None:
        self.choices: dict[int, ChoiceState] = {}
        self._call = call
        self._id = call.answer_id or ""
        self._model = ""
        self._head = b""

    @property
    def id(self) -> str:
        """The answer's id: one for all chunks."""
        return self._id or f"chatcmpl-{self._call.job_id.removeprefix('job_')}"

    def identify(self, id_: object, model: object) -> None:
        """What the upstream calls the answer, and which model gave it. The first that is said stays."""
        if not self.choices:
            self._id = self._id or (id_[:_MAX_NAME_CHARS] if isinstance(id_, str) else "")
            self._model = self._model or (model[:_MAX_NAME_CHARS] if isinstance(model, str) else "")
            self._head = b""

    def state(self, index: int) -> ChoiceState:
        """The state of a choice, which begins with this."""
        state = self.choices.get(index)
        if state is None:
            state = self.choices[index] = ChoiceState()
        return state

    def begin(self, index: int) -> list[Piece]:
        """The chunk with the role, once for each choice."""
        state = self.state(index)
        if state.begun:
            return []
        state.begun = True
        return [self.delta(index, {"role": "assistant"})]

    def content(self, index: int, text: str) -> list[Piece]:
        """A piece of the content. An empty one says nothing."""
        if not text:
            return []
        state = self.state(index)
        state.said = True
        state.length += len(text)
        return [*self.begin(index), self.delta(index, {"content": text})]

    def reasoning(self, index: int, text: str) -> list[Piece]:
        """A piece of the reasoning."""
        return [*self.begin(index), self.delta(index, {"reasoning_content": text})] if text else []

    def call(self, index: int, id_: object, name: object, arguments: str, **extra: Any) -> tuple[int, list[Piece]]:
        """A tool call begins. -> its number, and the chunks. An id that is missing, or not new, is made."""
        state = self.state(index)
        number = state.calls
        state.calls += 1
        if not isinstance(id_, str) or not id_ or id_ in state.call_ids:
            id_ = f"call_{self._call.job_id.removeprefix('job_')[:16]}_{index}_{number}"
        state.call_ids.add(id_)
        function = {"name": name if isinstance(name, str) else "", "arguments": arguments}
        call = {"index": number, "id": id_, "type": "function", "function": function, **extra}
        return number, [*self.begin(index), self.delta(index, {"tool_calls": [call]})]

    def arguments(self, index: int, number: int, fragment: str) -> list[Piece]:
        """A piece of a call's arguments."""
        call = {"index": number, "function": {"arguments": fragment}}
        return [self.delta(index, {"tool_calls": [call]})] if fragment else []

    def finish(self, index: int, reason: str, usage: dict[str, Any] | None = None, **extra: Any) -> list[Piece]:
        """The finish reason. The first one stays."""
        state = self.state(index)
        if state.finish_reason is not None:
            return []
        pieces = self.begin(index)
        state.finish_reason = reason
        choice = {"index": index, "delta": {}, "finish_reason": reason, **extra}
        return [*pieces, self.chunk([choice], usage)]

    def delta(self, index: int, delta: dict[str, Any], **extra: Any) -> Piece:
        """A chunk that adds to one choice."""
        return self.chunk([{"index": index, "delta": delta, **extra, "finish_reason": None}])

    def usage(self, usage: dict[str, Any]) -> Piece:
        """A chunk with the counts alone."""
        return self.chunk([], usage)

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> Piece:
        """A chunk of these choices. Only the choices are written each time: the rest is the same in every chunk.

        Raises Unwritable.
        """
        if not self._head:
            identity = {
                "id": self.id,
                "object": "chat.completion.chunk",
                "created": self._call.created,
                "model": self._model or self._call.model,
            }
            self._head = write_json(identity)[:-1]
        tail = b"}" if usage is None else b',"usage":' + write_json(usage) + b"}"
        try:
            data = self._head + b',"choices":' + write_json(choices) + tail
            return Piece(_read_chunk(data), data)
        except ValidationError as error:
            wrong = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise Unwritable(wrong["msg"]) from None
        except ValueError as error:
            raise Unwritable(str(error)) from None

    def finished(self) -> bool:
        """Whether there are choices, and each came to a finish reason."""
        return bool(self.choices) and all(state.finish_reason is not None for state in self.choices.values())


def failure(code: str, message: str, *, retryable: bool = True) -> ErrorInfo:
    """What is wrong with an answer."""
    return ErrorInfo(type="upstream_error", code=code, message=message, retryable=retryable)


def number(value: object) -> int | None:
    """A count as a whole number; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        return None
    return int(value)


def arguments_json(value: object) -> str:
    """A call's arguments as JSON text; what is no object is none. Raises Unwritable."""
    if not isinstance(value, dict):
        return "{}"
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise Unwritable(str(error)) from None
