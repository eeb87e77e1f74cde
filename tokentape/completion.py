"""The chat.completion object, and the pure fold from chunks to it.

State is keyed by choice index and tool index, never by a position in a list, so the order in which choices arrive
does not matter. One chunk costs the same however much came before: texts are kept as pieces and joined at the end.
Chunks are never changed, and what `completion()` gave is not changed by the chunks after it.

On a well-formed stream the result says what openai-python's own accumulation says. What is added to what:

- texts of a delta are joined, numbers added, objects merged field by field, lists extended; entries with an `index`
  are merged by it. A null adds nothing, and a value that does not fit what came before is dropped.
- `type`, `index`, `expires_at` and booleans: the last one. `id`, `role`, `format`: the first that is not empty.
  `name`: appended unless it repeats the whole name so far.
- finish_reason, and id, model, created, service_tier of the stream: the first that is not empty.
- usage, system_fingerprint, moderation: the last that is not null, and never a sum.
- unknown fields of chunk and choice: the last that is not null; objects field by field, lists replaced.

Where this differs from openai-python 3.54, and why:

- it places choices and tool calls by position in a list, which fails on a stream that begins with choice 1;
- it joins whatever text comes twice. Upstreams repeat role, name, id and format with every chunk, and
  "assistantassistant" helps nobody; nor does the sum of two expiry times or of two booleans;
- the last finish_reason wins there. Gateways send `tool_calls` and then a `stop` of their own;
- a null usage or fingerprint erases the one before it there, and unknown fields survive from the first chunk only;
- it refuses a second list of objects without an index (annotations): here the list is extended;
- it leaves the stream's `index` in each tool call; a chat.completion has none.
"""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pydantic import BaseModel

from .chunk import Annotation, ApiObject, ChatCompletionChunk, ChunkChoice, Logprobs, ToolCallDelta, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable

_FIRST_STAYS: Final = frozenset({"id", "role", "format"})
_LAST_STAYS: Final = frozenset({"index", "type", "expires_at"})
_JsonObject: TypeAlias = BaseModel | dict[str, Any]
#: Kept as they are; every other text is kept as a list of pieces.
_LABELS: Final = _FIRST_STAYS | _LAST_STAYS | {"name"}


class Function(ApiObject):
    """A function's name and its arguments: JSON text, as the model wrote it, so perhaps not valid."""

    name: str = ""
    arguments: str = ""


class ToolCall(ApiObject):
    """A call of a tool. `function` is None where the tool is not a function."""

    id: str = ""
    type: str = "function"
    function: Function | None = None


class Audio(ApiObject):
    """A spoken answer: base64 data, its transcript, and until when (Unix seconds) it can be referred to."""

    id: str = ""
    data: str = ""
    transcript: str = ""
    expires_at: int | None = None


class Message(ApiObject):
    """The assembled message. `content` is None where no content was ever sent, and "" where only "" was."""

    role: str = "assistant"
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None
    audio: Audio | None = None
    annotations: list[Annotation] | None = None


class Choice(ApiObject):
    """One answer. `finish_reason` is None where the stream broke off before it."""

    index: int
    message: Message
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class ChatCompletion(ApiObject):
    """A whole answer, as the API gives it to a request that does not stream, with the API's own fields.

    `id`, `model`, `created` (Unix seconds), `object`, `system_fingerprint`, `service_tier`: as upstream sent them.
    `choices`: the answers, in order of index, each with a `message` and a `finish_reason`. `text` is that of the first.
    `usage`: the tokens of the request, where the upstream told them.
    `moderation`: as upstream sent it.
    """

    id: str = ""
    object: str = "chat.completion"
    created: int = 0
    model: str = ""
    choices: list[Choice]
    system_fingerprint: str | None = None
    service_tier: str | None = None
    usage: Usage | None = None
    moderation: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        """The content of choice 0, or "" where it has none."""
        return next((choice.message.content or "" for choice in self.choices if choice.index == 0), "")


class Fold:
    """Assembles one completion from its chunks, in the order in which they arrived. No I/O, no clock, no errors.

    Ask for `completion()` or `text()` at any time, also before the end, and go on adding. Adding a chunk twice counts
    it twice: a reader that starts over begins with a new Fold.
    """

    __slots__ = ("_choices", "_created", "_extra", "_fingerprint", "_id", "_model", "_moderation", "_tier", "_usage")

    def __init__(self) -> None:
        self._choices: dict[int, _Choice] = {}
        self._id = ""
        self._model = ""
        self._created = 0
        self._tier: str | None = None
        self._fingerprint: str | None = None
        self._usage: Usage | None = None
        self._moderation: dict[str, Any] | None = None
        self._extra: dict[str, Any] = {}

    def add(self, chunk: ChatCompletionChunk) -> None:
        """Take in the next chunk. Its cost does not depend on what came before."""
        for choice in chunk.choices:
            state = self._choices.get(choice.index)
            if state is None:
                state = self._choices[choice.index] = _Choice()
            state.add(choice)
        self._id = self._id or chunk.id
        self._model = self._model or chunk.model
        self._created = self._created or chunk.created
        self._tier = self._tier or chunk.service_tier
        if chunk.system_fingerprint is not None:
            self._fingerprint = chunk.system_fingerprint
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.moderation is not None:
            self._moderation = chunk.moderation
        if chunk.__pydantic_extra__:
            _keep_latest(self._extra, chunk.__pydantic_extra__)

    def text(self, index: int = 0) -> str:
        """The content of one choice so far, "" where there is none."""
        state = self._choices.get(index)
        return "".join(state.content) if state is not None else ""

    def completion(self) -> ChatCompletion:
        """What has arrived so far, as a completion of its own. Whether the stream was complete is not known here."""
        optional = {
            "system_fingerprint": self._fingerprint,
            "service_tier": self._tier,
            "usage": self._usage,
            "moderation": copy.deepcopy(self._moderation),
        }
        return ChatCompletion.model_validate(
            {
                **copy.deepcopy(self._extra),
                "id": self._id,
                "object": "chat.completion",
                "created": self._created,
                "model": self._model,
                "choices": [self._choices[index].value(index) for index in sorted(self._choices)],
                **{name: value for name, value in optional.items() if value is not None},
            }
        )


def fold(chunks: Iterable[ChatCompletionChunk]) -> ChatCompletion:
    """The completion that a sequence of chunks makes."""
    state = Fold()
    for chunk in chunks:
        state.add(chunk)
    return state.completion()


class _Choice:
    """What has arrived of one choice. Its content is at hand, because nearly every chunk is a piece of that alone."""

    __slots__ = ("content", "extra", "finish_reason", "logprobs", "message")

    def __init__(self) -> None:
        self.content = _Text()
        self.message = _Object()
        self.message.fields["content"] = self.content
        self.logprobs: _Object | None = None
        self.finish_reason: str | None = None
        self.extra: dict[str, Any] = {}

    def add(self, choice: ChunkChoice) -> None:
        delta = choice.delta
        if delta.content is not None and len(delta.__pydantic_fields_set__) == 1:
            self.content.append(delta.content)
        else:
            self.message.merge(delta)
        if choice.logprobs is not None:
            self.logprobs = self.logprobs or _Object()
            self.logprobs.merge(choice.logprobs)
        self.finish_reason = self.finish_reason or choice.finish_reason
        if choice.__pydantic_extra__:
            _keep_latest(self.extra, choice.__pydantic_extra__)

    def value(self, index: int) -> dict[str, Any]:
        return {
            **copy.deepcopy(self.extra),
            "index": index,
            "message": self._message(),
            "logprobs": None if self.logprobs is None else {"content": None, "refusal": None, **self.logprobs.value()},
            "finish_reason": self.finish_reason or None,
        }

    def _message(self) -> dict[str, Any]:
        message = self.message.value()
        if not self.content:
            message["content"] = None
        if tool_calls := message.pop("tool_calls", None):
            message["tool_calls"] = [_tool_call(entry) for entry in tool_calls]
        if "function_call" in message:
            message["function_call"] = _function(message["function_call"])
        return {"role": "assistant", "content": None, "refusal": None, **message}


def _tool_call(entry: dict[str, Any]) -> dict[str, Any]:
    """A tool call with all that the API says it has, and without the stream's `index`."""
    entry.pop("index")
    if "function" in entry:
        entry["function"] = _function(entry["function"])
    return {"id": "", "type": "function", **entry}


def _function(entry: dict[str, Any]) -> dict[str, Any]:
    return {"name": "", "arguments": "", **entry}


class _Object:
    """A JSON object that grows by the rules for deltas. It owns all that it holds and that can change."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}

    def merge(self, delta: _JsonObject) -> None:
        fields = self.fields
        for name, value in _sent(delta):
            before = fields.get(name)
            if before is None:
                fields[name] = value if name in _LABELS else _begun(value)
            elif value is None:
                continue
            elif name in _LABELS:
                fields[name] = _label(name, before, value)
            else:
                fields[name] = _grown(before, value)

    def value(self) -> dict[str, Any]:
        return {name: _settled(value) for name, value in self.fields.items()}


class _List:
    """A JSON list that grows: entries with an index are merged by it and come first, all others are appended."""

    __slots__ = ("by_index", "others")

    def __init__(self) -> None:
        self.by_index: dict[int, _Object] = {}
        self.others: list[Any] = []

    def extend(self, entries: list[Any]) -> None:
        for entry in entries:
            index = _index(entry)
            if index is None:
                self.others.append(entry)
                continue
            place = self.by_index.get(index)
            if place is None:
                place = self.by_index[index] = _Object()
            place.merge(entry)

    def value(self) -> list[Any]:
        return [self.by_index[index].value() for index in sorted(self.by_index)] + self.others


class _Text(list[str]):
    """A text, in pieces."""


def _sent(delta: _JsonObject) -> Iterable[tuple[str, Any]]:
    """The fields that a delta says something in. A known field that is null says nothing; an unknown null is kept."""
    if isinstance(delta, dict):
        return delta.items()
    known = [(name, value) for name, value in vars(delta).items() if value is not None]
    return [*known, *delta.__pydantic_extra__.items()] if delta.__pydantic_extra__ else known


def _index(entry: object) -> int | None:
    if isinstance(entry, ToolCallDelta):
        return entry.index
    index = entry.get("index") if isinstance(entry, dict) else None
    return index if type(index) is int else None


def _label(name: str, before: object, value: object) -> object:
    if name in _LAST_STAYS:
        return value
    if name == "name" and isinstance(before, str) and isinstance(value, str):
        return before if before == value else before + value
    return before or value


def _begun(value: object) -> object:
    """A value of the fold's own, that can grow, from the first one that a chunk sent."""
    if isinstance(value, str):
        return _Text((value,))
    begun: _Object | _List
    if isinstance(value, list):
        begun = _List()
        begun.extend(value)
    elif isinstance(value, dict | BaseModel):
        begun = _Object()
        begun.merge(value)
    else:
        return value
    return begun


def _grown(before: object, value: object) -> object:
    """What was there and what a chunk adds to it; what was there, where the two do not fit."""
    if isinstance(before, _Text):
        if isinstance(value, str):
            before.append(value)
    elif isinstance(before, _Object):
        if isinstance(value, dict | BaseModel):
            before.merge(value)
    elif isinstance(before, _List):
        if isinstance(value, list):
            before.extend(value)
    elif isinstance(before, bool) or isinstance(value, bool):
        return value if type(before) is type(value) else before
    elif isinstance(before, int | float) and isinstance(value, int | float):
        with contextlib.suppress(OverflowError):  # an integer beyond every float, and a float
            return before + value
    return before


def _settled(value: object) -> object:
    if isinstance(value, _Text):
        return "".join(value)
    return value.value() if isinstance(value, _Object | _List) else value


def _keep_latest(kept: dict[str, Any], sent: dict[str, Any]) -> None:
    """Let what was sent replace what was kept, field by field; a null replaces nothing."""
    for name, value in sent.items():
        before = kept.get(name)
        if isinstance(value, dict):
            # A dict of the fold's own: the chunk's must not change with the next one.
            kept[name] = inner = before if isinstance(before, dict) else {}
            _keep_latest(inner, value)
        elif value is not None or before is None:
            kept[name] = value
